//! The guest's side of shared folders.
//!
//! A stock Linux cannot be told over virtio-fs that something changed on the host. This program makes it look again: it asks the kernel
//! for what the host names in a [`protocol::Command`], in ways that go past the kernel's caches, and repeats the host's change in a way that
//! changes nothing there (the VMM knows the requests of this process, and answers without acting), so that inotify reports it.
//!
//! It has no C library and no allocator, one thread, and a stack of a few KiB: it lives as long as the guest.
#![no_std]
#![no_main]

#[expect(dead_code, reason = "the half that the host uses")]
mod protocol;
mod system;

use protocol::{COMMAND_BYTES, Command, HELLO_BYTES, Kind, MAGIC, MAX_NAME_BYTES, REPLY_BYTES};
use system::{Error, Result};

/// Shares of one machine.
const MAX_SHARES: usize = 64;
const EBADF: Error = Error(9);
const EINVAL: Error = Error(22);

/// A name with its NUL.
type Name = [u8; MAX_NAME_BYTES + 1];

extern "C" fn main() -> ! {
    // Where there is no host's end, there is nothing to do; where it went away, it may come back.
    let mut patience = 5;
    loop {
        for port in (512..protocol::PRIVILEGED_PORTS).rev() {
            if let Ok(host) = system::connect(protocol::PORT, port) {
                patience = 5;
                let _ = serve(host);
                system::close(host);
                break;
            }
            // Another port only where this one is in use (EADDRINUSE).
            if port % 8 == 0 {
                break;
            }
        }
        patience -= 1;
        if patience == 0 {
            system::exit(1);
        }
        system::sleep(1);
    }
}

/// Obeys until the connection ends.
fn serve(host: usize) -> Result {
    let mut hello = [0; HELLO_BYTES];
    put(&mut hello, MAGIC, system::pid());
    write_all(host, &hello)?;
    let mut shares = [None; MAX_SHARES];
    let mut count = 0;
    let (mut name, mut other) = ([0; MAX_NAME_BYTES + 1], [0; MAX_NAME_BYTES + 1]);
    loop {
        let mut bytes = [0; COMMAND_BYTES];
        read_all(host, &mut bytes)?;
        let command = Command::from_bytes(&bytes).ok_or(EINVAL)?;
        read_name(host, command.name_len, &mut name)?;
        read_name(host, command.other_name_len, &mut other)?;
        let result = if command.kind == Kind::Mount {
            let mounted = system::mount(b"virtiofs\0", &name);
            let slot = shares.get_mut(count).ok_or(EINVAL)?;
            *slot = mounted.ok();
            count += 1;
            mounted
        } else {
            let share = shares.get(usize::from(command.share)).copied().flatten();
            share.ok_or(EBADF).and_then(|share| obey(share, &command, &name, &other))
        };
        let mut reply = [0; REPLY_BYTES];
        put(&mut reply, command.sequence, result.err().map_or(0, |Error(number)| number));
        write_all(host, &reply)?;
    }
}

fn obey(share: usize, command: &Command, name: &Name, other: &Name) -> Result {
    if command.kind == Kind::Reset {
        return system::reconfigure(share);
    }
    system::change_directory(share)?;
    let node = system::open_node(command.node)?;
    let result = on_node(node, command, name, other);
    system::close(node);
    // Let go, so that nothing of the share is in use by this process.
    let _ = system::change_directory(share);
    result
}

fn on_node(node: usize, command: &Command, name: &Name, other: &Name) -> Result {
    match command.kind {
        Kind::Look => system::look(node).map(|_| 0),
        Kind::LookUp => system::link_nothing(node, name),
        Kind::Modified => system::look(node).and_then(|_| system::touch(node, false, true)),
        Kind::Attributes => system::look(node).and_then(|_| system::touch(node, true, true)),
        Kind::Created => match command.file_type {
            4 => system::make_directory(node, name),
            10 => system::make_symlink(node, name),
            file_type => system::make_node(node, name, usize::from(file_type) << 12 | 0o644),
        },
        Kind::Deleted => system::remove(node, name, command.file_type == 4),
        Kind::Moved => {
            let new_directory = system::open_node(command.other_node)?;
            let result = system::rename(node, name, new_directory, other);
            system::close(new_directory);
            result
        }
        Kind::Mount | Kind::Reset => Err(EINVAL),
    }
}

fn put(bytes: &mut [u8; 8], first: u32, second: u32) {
    let words = first.to_le_bytes().into_iter().chain(second.to_le_bytes());
    bytes.iter_mut().zip(words).for_each(|(to, from)| *to = from);
}

fn read_name(host: usize, len: u16, name: &mut Name) -> Result {
    let len = usize::from(len);
    let to = name.get_mut(..len).filter(|to| to.len() <= MAX_NAME_BYTES).ok_or(EINVAL)?;
    read_all(host, to)?;
    name.iter_mut().skip(len).take(1).for_each(|end| *end = 0);
    Ok(len)
}

fn read_all(fd: usize, to: &mut [u8]) -> Result {
    let mut at = 0;
    while let Some(rest) = to.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match system::read(fd, rest)? {
            0 => return Err(EBADF),
            len => at += len,
        }
    }
    Ok(at)
}

fn write_all(fd: usize, from: &[u8]) -> Result {
    let mut at = 0;
    while let Some(rest) = from.get(at..).filter(|rest| !rest.is_empty()) {
        at += system::write(fd, rest)?;
    }
    Ok(at)
}

#[panic_handler]
fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
    system::exit(2)
}
