//! Harmony.
