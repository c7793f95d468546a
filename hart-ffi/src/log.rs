//! The log: messages that no call returns.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::ffi::{c_char, c_void};
use std::mem::replace;
use std::panic::PanicHookInfo;
use std::sync::{Once, PoisonError, RwLock};

use ::log::{Level, LevelFilter, Log, Metadata, Record};
use hart_core::with_default_float_state;

use crate::guard::{guard, panic_text};
use crate::status::{Failure, HART_ERR_STATE, hart_status};
use crate::text::to_c;
use crate::user_data::{UserData, hart_destroy};

/// Severity of a message. Later versions may add values.
pub type hart_log_level = i32;

/// A panic: a failure inside hart or a library that it uses. The call in which it happened, if any, returns an error.
pub const HART_LOG_ERROR: hart_log_level = 1;
/// A library that hart uses works differently than expected: it ignores a damaged cache, for example.
pub const HART_LOG_WARNING: hart_log_level = 2;

/// Callback that receives a message, which is valid during the call. hart calls it on any thread, also on several at the
/// same time. It must not call functions of hart, and must return normally: no C++ exception, no longjmp, no thread exit.
pub type hart_logger = Option<unsafe extern "C" fn(level: hart_log_level, message: *const c_char, user_data: *mut c_void)>;

struct Logger {
    log: unsafe extern "C" fn(level: hart_log_level, message: *const c_char, user_data: *mut c_void),
    user_data: UserData,
}

/// The logger of the program. Calls hold the lock for reading.
static LOGGER: RwLock<Option<Logger>> = RwLock::new(None);

thread_local! {
    /// Number of calls of hart that this thread is in.
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// `true` while this thread is calling the logger.
    static IN_LOGGER: Cell<bool> = const { Cell::new(false) };
}

/// Sets the callback that receives the messages of the whole library: the texts of panics, and warnings of the libraries
/// that hart uses. NULL, the default, removes it: hart then prints nothing, and a call in which a panic happens still
/// returns an error whose text is in `hart_last_error`. When the call returns, the former callback has returned and is no
/// longer called. `destroy` may be NULL; otherwise hart calls it once when it no longer needs `user_data`. Returns
/// `HART_ERR_STATE` inside the callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hart_set_log(logger: hart_logger, user_data: *mut c_void, destroy: hart_destroy) -> hart_status {
    let user_data = UserData::new(user_data, destroy);
    guard(|| {
        if IN_LOGGER.get() {
            return Err(Failure::new(HART_ERR_STATE, "the log can't be changed inside its callback"));
        }
        let logger = logger.map(|log| Logger { log, user_data });
        if logger.is_some() {
            // Fails if the program shares this crate's logger and has set its own, which then receives the warnings.
            let _ = ::log::set_logger(&Forward);
        }
        let mut current = LOGGER.write().unwrap_or_else(PoisonError::into_inner);
        ::log::set_max_level(if logger.is_some() { LevelFilter::Warn } else { LevelFilter::Off });
        let former = replace(&mut *current, logger);
        drop(current);
        // Without the lock: destroying user data calls the program.
        drop(former);
        Ok(())
    })
}

/// Passes a message to the logger, if there is one.
fn log(level: hart_log_level, message: &str) {
    // A logger that calls hart in spite of the rule must not wait for itself.
    if IN_LOGGER.get() {
        return;
    }
    if let Some(Logger { log, user_data }) = &*LOGGER.read().unwrap_or_else(PoisonError::into_inner) {
        let message = to_c(message);
        IN_LOGGER.set(true);
        // Restores the default floating-point state if the function changes it.
        // SAFETY: the program has set this function and its user data, and the message is valid during the call.
        with_default_float_state(|| unsafe { log(level, message.as_ptr(), user_data.pointer()) });
        IN_LOGGER.set(false);
    }
}

/// Forwards the warnings of the libraries that hart uses.
struct Forward;

impl Log for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = if record.level() == Level::Error { HART_LOG_ERROR } else { HART_LOG_WARNING };
            log(level, &format!("{}: {}", record.target(), record.args()));
        }
    }

    fn flush(&self) {}
}

/// Marks this thread as being in a call of hart until it is dropped.
pub(crate) struct Call(());

impl Call {
    pub(crate) fn begin() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let others = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| if is_of_hart() { log_panic(panic) } else { others(panic) }));
        });
        CALLS.set(CALLS.get() + 1);
        Self(())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        CALLS.set(CALLS.get() - 1);
    }
}

/// Returns whether this thread is in a call of hart, or is one of hart's own: a thread of a pool, or of the GPU's runtime, which
/// has the name "DSU" or "DSD" with the device. A Rust program that links the static library may share its panic hook with hart.
fn is_of_hart() -> bool {
    let is_of_gpu = || std::thread::current().name().is_some_and(|name| name.starts_with("DSU-") || name.starts_with("DSD-"));
    CALLS.try_with(Cell::get).is_ok_and(|calls| calls > 0) || rayon::current_thread_index().is_some() || is_of_gpu()
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map_or_else(String::new, |location| format!(" at {location}"));
    let mut message = format!("panic{place}: {}", panic_text(panic.payload()));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        message += &format!("\n{backtrace}");
    }
    log(HART_LOG_ERROR, &message);
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::ptr::null_mut;
    use std::sync::Mutex;

    use super::*;
    use crate::status::{HART_ERR_PANIC, HART_OK};

    type Messages = Mutex<Vec<(hart_log_level, String)>>;

    unsafe extern "C" fn keep(level: hart_log_level, message: *const c_char, user_data: *mut c_void) {
        // SAFETY: hart passes the test's messages and a string.
        let (messages, message) = unsafe { (&*user_data.cast::<Messages>(), CStr::from_ptr(message)) };
        // SAFETY: inside the callback, this only returns a status.
        assert_eq!(unsafe { hart_set_log(None, null_mut(), None) }, HART_ERR_STATE);
        messages.lock().unwrap().push((level, message.to_string_lossy().into_owned()));
    }

    unsafe extern "C" fn destroy(user_data: *mut c_void) {
        // SAFETY: hart passes the test's messages.
        unsafe { &*user_data.cast::<Messages>() }.lock().unwrap().push((0, "destroyed".into()));
    }

    #[test]
    fn panics_and_warnings_reach_the_logger() {
        let messages = Messages::default();
        let data = std::ptr::from_ref(&messages).cast_mut().cast();
        // SAFETY: the messages live until the logger is removed.
        assert_eq!(unsafe { hart_set_log(Some(keep), data, Some(destroy)) }, HART_OK);
        assert_eq!(guard(|| panic!("on this thread")), HART_ERR_PANIC);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(guard(|| pool.install(|| panic!("on a pool's thread"))), HART_ERR_PANIC);
        ::log::warn!(target: "library", "a warning");
        ::log::info!("not a warning");
        // SAFETY: as above.
        assert_eq!(unsafe { hart_set_log(None, null_mut(), None) }, HART_OK);
        assert_eq!(guard(|| panic!("without a logger")), HART_ERR_PANIC);
        let messages = messages.into_inner().unwrap();
        let texts: Vec<&str> = messages.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(
            texts[0].starts_with("panic at ") && texts[0].contains("log.rs") && texts[0].contains(": on this thread"),
            "{texts:?}"
        );
        assert!(texts[1].contains(": on a pool's thread"), "{texts:?}");
        assert_eq!(messages[2..], [(HART_LOG_WARNING, "library: a warning".into()), (0, "destroyed".into())]);
        // A panic of the program itself is not hart's.
        assert!(!is_of_hart());
    }
}
