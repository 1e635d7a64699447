//! What the framework costs over the bare parts.
