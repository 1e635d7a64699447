//! Clients of other languages call our services.
