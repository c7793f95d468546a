//! Signals that end a batch.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A request to stop after the images in work. A second signal ends the process at once.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    is_set: Arc<AtomicBool>,
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Installs the handlers of SIGINT (Ctrl-C) and SIGTERM.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    #[cfg(unix)]
    pub fn on_signals() -> io::Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        use signal_hook::flag;
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM] {
            flag::register_usize(signal, stop.signal.clone(), signal as usize)?;
            // Ends the process if the flag was set before.
            flag::register_conditional_shutdown(signal, 128 + signal, stop.is_set.clone())?;
            flag::register(signal, stop.is_set.clone())?;
        }
        Ok(stop)
    }

    /// Installs the handler of Ctrl-C.
    ///
    /// # Errors
    ///
    /// Returns the system's error.
    #[cfg(not(unix))]
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        let handled = stop.clone();
        let handler = move || {
            if handled.is_set.swap(true, Ordering::Relaxed) {
                std::process::exit(hart_examples::cli::INTERRUPTED.into());
            }
            handled.signal.store(usize::from(hart_examples::cli::INTERRUPTED) - 128, Ordering::Relaxed);
        };
        ctrlc::set_handler(handler).map_err(io::Error::other)?;
        Ok(stop)
    }

    /// Sets the request without a signal.
    pub fn set(&self) {
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Returns whether the batch is to stop.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    /// Returns the exit code of the signal, as shells write it: 128 and its number. `None` without a signal.
    pub fn exit_code(&self) -> Option<u8> {
        let signal = self.signal.load(Ordering::Relaxed);
        u8::try_from(signal).ok().filter(|signal| *signal > 0).map(|signal| 128 + signal)
    }
}
