//! The layers that a configuration is read from.
