//! Where a serial port's bytes go.

/// Takes what a guest prints.
pub trait ByteOutput: Send {
    /// Takes all of `bytes`, in order. Called on a vCPU's or the event loop's thread with the device locked; may wait for the host's
    /// screen, must not call back into the device.
    fn write(&mut self, bytes: &[u8]);
}
