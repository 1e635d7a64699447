//! Layered, typed settings: file, environment, flags.
