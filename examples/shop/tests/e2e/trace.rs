//! One order is one trace, over all services, and every log line of it says so.
