//! A pipe whose ends never block and are not inherited, on every host.

use std::io;
use std::os::fd::OwnedFd;

/// The ends for reading and for writing.
///
/// # Errors
/// What the host says where it gives none.
pub fn nonblocking() -> io::Result<(OwnedFd, OwnedFd)> {
    // Not inherited, as everything that the standard library opens.
    let (read, write) = io::pipe()?;
    let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
    rustix::io::ioctl_fionbio(&read, true)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    Ok((read, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_pipe_does_not_block() {
        let (read, write) = nonblocking().unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read, &mut byte), Err(rustix::io::Errno::WOULDBLOCK));
        rustix::io::write(&write, &[7]).unwrap();
        assert_eq!(rustix::io::read(&read, &mut byte), Ok(1));
    }
}
