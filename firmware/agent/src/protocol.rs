//! What host and agent say to each other, over a vsock connection that the agent makes. Little-endian, no padding.
//!
//! ```text
//!   agent -> host   Hello                           once
//!   host -> agent   Command, name, other name       any number, in order
//!   agent -> host   Reply                           one for each, in order
//! ```
//! A file is named by its FUSE node, a name by its directory's node: the guest's kernel finds a node that it holds in memory and no other,
//! so a path that changed meanwhile, or a mount above it, cannot mislead the agent.

/// The host's vsock port.
pub const PORT: u32 = 0x6d76_6167;
/// The agent connects from a port below this: only a privileged program of the guest can (`CAP_NET_BIND_SERVICE`).
pub const PRIVILEGED_PORTS: u32 = 1024;
/// The first word of `Hello`; its last byte is the version.
pub const MAGIC: u32 = 0x6d76_6601;
/// The longest name of a file, and of a tag.
pub const MAX_NAME_BYTES: usize = 255;

/// Bytes of a command without its names.
pub const COMMAND_BYTES: usize = 32;
/// Bytes of a hello: magic, PID of the agent in the guest.
pub const HELLO_BYTES: usize = 8;
/// Bytes of a reply: sequence, Linux error number or 0.
pub const REPLY_BYTES: usize = 8;

/// What the agent is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Mount the share whose tag is the name, for the commands that follow. No directory shows it.
    Mount = 1,
    /// Ask for the attributes of `node` (AUTO_INVAL_DATA then drops what was cached of a file that changed).
    Look = 2,
    /// Look up `name` in `node` afresh.
    LookUp = 3,
    /// As [`Kind::Look`], then tell watchers that the content of `node` changed.
    Modified = 4,
    /// As [`Kind::Look`], then tell watchers that the attributes of `node` changed.
    Attributes = 5,
    /// Make `name` of `file_type` appear in `node`, and tell watchers.
    Created = 6,
    /// Make `name` disappear from `node`, and tell watchers. `file_type` tells a directory.
    Deleted = 7,
    /// Move `name` in `node` to `other_name` in `other_node`, and tell watchers.
    Moved = 8,
    /// Forget everything that is cached and not in use.
    Reset = 9,
}

/// A command, without its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub kind: Kind,
    /// `S_IFMT` bits of a mode, shifted right by 12 (`DT_*`).
    pub file_type: u8,
    /// Which share: the number of its Mount command among those of this connection.
    pub share: u16,
    /// Comes back in the reply.
    pub sequence: u32,
    /// See [`Kind`].
    pub node: u64,
    /// See [`Kind`].
    pub other_node: u64,
    /// Bytes of the name that follows.
    pub name_len: u16,
    /// Bytes of the other name, behind the first.
    pub other_name_len: u16,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [
            Self::Mount,
            Self::Look,
            Self::LookUp,
            Self::Modified,
            Self::Attributes,
            Self::Created,
            Self::Deleted,
            Self::Moved,
            Self::Reset,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }
}

impl Command {
    /// The command as it is sent.
    #[must_use]
    pub fn to_bytes(self) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        let (kind, file_type) = (self.kind as u8, self.file_type);
        let fields: [&[u8]; 8] = [
            &[kind, file_type],
            &self.share.to_le_bytes(),
            &self.sequence.to_le_bytes(),
            &self.node.to_le_bytes(),
            &self.other_node.to_le_bytes(),
            &self.name_len.to_le_bytes(),
            &self.other_name_len.to_le_bytes(),
            &[0; 4],
        ];
        bytes.iter_mut().zip(fields.into_iter().flatten()).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// What [`Self::to_bytes`] made; `None` for a kind that does not exist.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; COMMAND_BYTES]) -> Option<Self> {
        let [kind, file_type, s0, s1, q0, q1, q2, q3, rest @ ..] = *bytes;
        let [n0, n1, n2, n3, n4, n5, n6, n7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, m0, m1, ..] = rest;
        Some(Self {
            kind: Kind::from_number(kind)?,
            file_type,
            share: u16::from_le_bytes([s0, s1]),
            sequence: u32::from_le_bytes([q0, q1, q2, q3]),
            node: u64::from_le_bytes([n0, n1, n2, n3, n4, n5, n6, n7]),
            other_node: u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            name_len: u16::from_le_bytes([l0, l1]),
            other_name_len: u16::from_le_bytes([m0, m1]),
        })
    }
}
