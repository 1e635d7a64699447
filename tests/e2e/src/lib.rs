//! The shop as processes: routes, kills, drains.
