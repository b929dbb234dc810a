// UNSAFETY: results go through pointers of C callers.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Return codes (hvf.md §1.1), and the one place that writes through a caller's pointer.

/// Done.
pub const SUCCESS: i32 = 0;
/// Overlap, misalignment, and what has no code of its own.
pub const ERROR: i32 = code(1);
/// The resource is taken.
pub const BUSY: i32 = code(2);
/// An argument that names nothing.
pub const BAD_ARGUMENT: i32 = code(3);
/// No more slots.
pub const NO_RESOURCES: i32 = code(5);
/// No virtual machine, or no such vCPU.
pub const NO_DEVICE: i32 = code(6);
/// Not allowed.
pub const DENIED: i32 = code(7);
/// It exists.
pub const EXISTS: i32 = code(8);
/// Not on this machine.
pub const UNSUPPORTED: i32 = code(15);

const fn code(number: u32) -> i32 {
    (0xfae9_4000 | number).cast_signed()
}

/// Stores `value` where the caller wants it.
pub fn put<T>(out: *mut T, value: T) -> i32 {
    if out.is_null() || !out.is_aligned() {
        return BAD_ARGUMENT;
    }
    // SAFETY: neither null nor misaligned; that it may be written is the caller's side of the C contract.
    unsafe { out.write(value) };
    SUCCESS
}

/// Stores what there is, or says why there is nothing.
pub fn put_result<T>(out: *mut T, value: Result<T, i32>) -> i32 {
    match value {
        Ok(value) => put(out, value),
        Err(code) => code,
    }
}

/// The code of `result`.
pub fn code_of(result: Result<(), i32>) -> i32 {
    result.err().unwrap_or(SUCCESS)
}

/// What no caller may do; the process ends here, as the framework would end it or something worse would happen later.
pub fn die(what: &str) -> ! {
    eprintln!("hvf-sim: {what}");
    std::process::abort()
}
