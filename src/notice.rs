//! Lines on stderr for whoever runs the program.
//!
//! Where stderr is a log that programs read ([`to_log`]), they are events of it: every line there is
//! one of the log's.

use std::{
    fmt,
    io::Write as _,
    sync::atomic::{AtomicBool, Ordering},
};

static TO_LOG: AtomicBool = AtomicBool::new(false);

/// From here on lines, errors and panics are events of the log.
pub(crate) fn to_log() {
    TO_LOG.store(true, Ordering::Relaxed);
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
}

/// Says `text`. A closed stderr is taken for what it is: nobody listens.
pub(crate) fn tell(text: fmt::Arguments<'_>) {
    match TO_LOG.load(Ordering::Relaxed) {
        true => tracing::info!("{text}"),
        false => drop(writeln!(std::io::stderr(), "{text}")),
    }
}

/// Says why the program ends.
pub(crate) fn fail(error: &anyhow::Error) {
    match TO_LOG.load(Ordering::Relaxed) {
        true => tracing::error!("{error:#}"),
        false => tell(format_args!("error: {error:#}")),
    }
}
