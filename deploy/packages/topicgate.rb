# Homebrew's formula, for a tap. `scripts/release formula` fills in what stands between two @ and adds it to a release.
class Topicgate < Formula
  desc "Message topics of NATS or Redis to browsers over Server-Sent Events"
  homepage "@HOMEPAGE@"
  version "@VERSION@"
  license "Apache-2.0"

  on_macos do
    on_arm do
      url "@DOWNLOADS@/topicgate-@VERSION@-aarch64-apple-darwin.tar.gz"
      sha256 "@SHA256 aarch64-apple-darwin@"
    end
    on_intel do
      url "@DOWNLOADS@/topicgate-@VERSION@-x86_64-apple-darwin.tar.gz"
      sha256 "@SHA256 x86_64-apple-darwin@"
    end
  end
  on_linux do
    on_arm do
      url "@DOWNLOADS@/topicgate-@VERSION@-aarch64-unknown-linux-musl.tar.gz"
      sha256 "@SHA256 aarch64-unknown-linux-musl@"
    end
    on_intel do
      url "@DOWNLOADS@/topicgate-@VERSION@-x86_64-unknown-linux-musl.tar.gz"
      sha256 "@SHA256 x86_64-unknown-linux-musl@"
    end
  end

  def install
    bin.install "topicgate"
    man1.install Dir["man/*.1"]
    bash_completion.install "completions/topicgate.bash" => "topicgate"
    zsh_completion.install "completions/topicgate.zsh" => "_topicgate"
    fish_completion.install "completions/topicgate.fish"
    pkgetc.install "config/topicgate.toml"
  end

  service do
    run [opt_bin/"topicgate", "--config", etc/"topicgate/topicgate.toml"]
    keep_alive successful_exit: false
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/topicgate --version")
  end
end
