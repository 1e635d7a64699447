//! The broker on MQTT 5.
