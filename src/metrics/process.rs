//! Metrics of this process, which the system reports, under the names that Prometheus' own client libraries use. They are
//! read at each scrape, on Linux only.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Ok(process) = procfs::process::Process::myself() else { return Ok(()) };
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Ok(open) = process.fd_count() {
            gauge("process_open_fds", "Open file descriptors", open as f64)?;
        }
        if let Ok(limits) = process.limits()
            && let procfs::process::LimitValue::Value(most) = limits.max_open_files.soft_limit
        {
            gauge("process_max_fds", "The most file descriptors that may be open", most as f64)?;
        }
        let Ok(stat) = process.stat() else { return Ok(()) };
        let resident = (stat.rss * procfs::page_size()) as f64;
        gauge("process_resident_memory_bytes", "Resident memory", resident)?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        if let Ok(boot) = procfs::boot_time_secs() {
            let start = boot as f64 + seconds(stat.starttime);
            gauge(
                "process_start_time_seconds",
                "When the process started, as a Unix time in seconds",
                start,
            )?;
        }
        let metric = ConstCounter::new(seconds(stat.utime + stat.stime));
        let help = "CPU time in seconds";
        metric.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, metric.metric_type())?)
    }
}
