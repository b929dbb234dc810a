// UNSAFETY: os_objects are handed to C callers as bare pointers and come back as such.
#![expect(unsafe_code, reason = "see UNSAFETY above")]

//! Configuration objects: made by a `create` call, used by pointer, freed by `os_release`.
//!
//! Every live object is in a table by its address, so that a pointer that is none, or one that was released, is found out.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use crate::status::die;

type Object = Box<dyn Any + Send>;

static OBJECTS: Mutex<(usize, BTreeMap<usize, Object>)> = Mutex::new((0, BTreeMap::new()));

/// Objects that were made and not released.
#[must_use]
pub fn live_objects() -> usize {
    OBJECTS.lock().unwrap_or_else(PoisonError::into_inner).1.len()
}

/// Makes an object. Its address is only a name.
pub fn create<T: Any + Send>(value: T) -> *mut c_void {
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    objects.0 += 16;
    let name = objects.0;
    objects.1.insert(name, Box::new(value));
    std::ptr::without_provenance_mut(name)
}

/// Calls `f` with the object that `pointer` names; `None` where it is of another kind. Ends the process for a pointer to no live object.
pub fn with<T: Any, R>(pointer: *mut c_void, f: impl FnOnce(&mut T) -> R) -> Option<R> {
    let mut objects = OBJECTS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(object) = objects.1.get_mut(&pointer.addr()) else {
        die("use of an object that was released or never made")
    };
    object.downcast_mut().map(f)
}

#[unsafe(no_mangle)]
extern "C" fn os_release(object: *mut c_void) {
    if object.is_null() {
        return;
    }
    if OBJECTS.lock().unwrap_or_else(PoisonError::into_inner).1.remove(&object.addr()).is_none() {
        die("os_release of an object that was released or never made");
    }
}
