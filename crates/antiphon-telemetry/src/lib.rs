//! Logs, metrics, traces, and the admin port.
