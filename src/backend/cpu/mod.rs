//! The fast CPU back end.
