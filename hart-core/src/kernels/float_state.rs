//! The processor's floating-point state: rounding, traps, and whether subnormal numbers are flushed to zero.

/// Runs work in the default floating-point state, which compiled Rust code assumes: results are rounded to the nearest number, subnormal
/// numbers are kept, and no operation traps. Restores the thread's state afterwards, with its exception flags.
///
/// Models and the C ABI do so in every call. A program needs it for other functions, if its code runs in another state.
pub fn with_default_float_state<R>(work: impl FnOnce() -> R) -> R {
    let _restore = Restore(state::get());
    state::set(state::DEFAULT);
    call(work)
}

/// Sets the default state of this thread. A new thread may inherit the state of the thread that starts it.
pub(crate) fn set_default_float_state() {
    state::set(state::DEFAULT);
}

/// Calls work. A call keeps the compiler from moving its operations across a change of the state.
#[inline(never)]
fn call<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Restores a state when dropped.
struct Restore(state::State);

impl Drop for Restore {
    fn drop(&mut self) {
        state::set(self.0);
    }
}

/// MXCSR, and the control word of the x87 unit: Rust does not use that unit, but C's `fegetround` reads it in callbacks.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod state {
    use std::arch::asm;

    #[derive(Clone, Copy)]
    pub(super) struct State {
        pub(super) mxcsr: u32,
        pub(super) x87: u16,
    }

    /// All exceptions masked, none raised; the x87 unit computes with its full precision.
    pub(super) const DEFAULT: State = State { mxcsr: 0x1f80, x87: 0x37f };

    pub(super) fn get() -> State {
        let (mut mxcsr, mut x87) = (0, 0);
        // SAFETY: the instructions only write the two variables.
        unsafe {
            asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut mxcsr, in(reg) &raw mut x87, options(nostack, preserves_flags));
        }
        State { mxcsr, x87 }
    }

    pub(super) fn set(State { mxcsr, x87 }: State) {
        // SAFETY: sets a value from `get`, or the one that Rust assumes. The first is set only before code that has used it before.
        unsafe { asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &raw const mxcsr, in(reg) &raw const x87, options(nostack, readonly)) };
    }
}

/// FPCR.
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod state {
    use std::arch::asm;

    pub(super) type State = u64;

    pub(super) const DEFAULT: State = 0;

    pub(super) fn get() -> State {
        let value;
        // SAFETY: the instruction only reads the register.
        unsafe { asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    pub(super) fn set(value: State) {
        // SAFETY: sets a value from `get`, or the one that Rust assumes. The first is set only before code that has used it before.
        unsafe { asm!("msr fpcr, {}", in(reg) value, options(nostack)) };
    }
}

/// Processors on which a program is unlikely to change the state.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod state {
    pub(super) type State = ();

    pub(super) const DEFAULT: State = ();

    pub(super) fn get() -> State {}

    pub(super) fn set((): State) {}
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::hint::black_box;

    use super::*;

    /// Returns a state that flushes subnormal numbers to zero and rounds up.
    #[cfg(target_arch = "x86_64")]
    fn other() -> state::State {
        state::State { mxcsr: 0xdfc0, ..state::DEFAULT }
    }

    /// Returns the control bits of a state.
    #[cfg(target_arch = "x86_64")]
    fn control(state: state::State) -> u32 {
        state.mxcsr & 0xffc0
    }

    #[cfg(target_arch = "aarch64")]
    fn other() -> state::State {
        1 << 24 | 1 << 22
    }

    #[cfg(target_arch = "aarch64")]
    fn control(state: state::State) -> u64 {
        state
    }

    fn halved() -> f32 {
        black_box(black_box(f32::MIN_POSITIVE) / 2.0)
    }

    #[test]
    fn work_runs_in_the_default_state_and_the_threads_own_is_restored() {
        let own = state::get();
        state::set(other());
        let outside = call(halved);
        let inside = with_default_float_state(halved);
        let after = state::get();
        let caught = std::panic::catch_unwind(|| with_default_float_state(|| std::panic::resume_unwind(Box::new("test")))).is_err();
        let after_panic = state::get();
        state::set(own);
        assert_eq!(outside, 0.0);
        assert!(inside > 0.0 && caught);
        assert_eq!([after, after_panic].map(control), [control(other()); 2]);
    }
}
