//! What one guest may take of the host: every table, queue and buffer of the NAT has its bound here. The README repeats them.

use std::time::Duration;

/// TCP flows, connecting ones included. The guest's next connection is refused, the host's is closed.
pub const TCP_FLOWS: usize = 4096;
/// Of these, the guest's that the host has not connected yet. A SYN beyond is dropped: the guest sends it again.
pub const TCP_CONNECTING: usize = 1024;
/// How long the host may take to connect.
pub const TCP_CONNECT_PATIENCE: Duration = Duration::from_secs(130);
/// How long the guest may take to answer a SYN, or to acknowledge our answer to its own: about as long as Linux tries (`tcp_syn_retries`). A
/// server whose backlog is full answers nothing until there is room.
pub const TCP_HANDSHAKE_PATIENCE: Duration = Duration::from_secs(120);
/// How long data may wait for a guest from which nothing is heard.
pub const TCP_SILENCE_PATIENCE: Duration = Duration::from_secs(120);
/// How long a flow may have neither an acknowledgment nor a timer: see `Stack::is_stuck`.
pub const TCP_NUDGE_PATIENCE: Duration = Duration::from_millis(200);
/// Buffers of all TCP flows together, beyond the smallest that every flow has.
pub const TCP_BUFFER_BUDGET_BYTES: usize = 256 << 20;
/// The largest and the smallest buffer of a flow, one for each direction: all flows together have at most
/// `TCP_BUFFER_BUDGET_BYTES` + `TCP_FLOWS` * 2 * `TCP_MIN_BUFFER_BYTES`, which is 384 MiB.
pub const TCP_MAX_BUFFER_BYTES: usize = 512 << 10;
pub const TCP_MIN_BUFFER_BYTES: usize = 16 << 10;
/// What is left of the budget is divided by this for the next flow's two buffers.
pub const TCP_BUDGET_SHARE: usize = 128;
/// Data of the guest that is written to the host before the rest of the guest's frames is looked at.
pub const TCP_WRITE_BYTES: usize = 128 << 10;

/// UDP sockets of the host, one for each address and port of the guest that sends. The one that was silent longest makes room.
pub const UDP_FLOWS: usize = 1024;
/// RFC 4787 REQ-5: not under two minutes.
pub const UDP_SILENCE: Duration = Duration::from_secs(120);
/// Addresses that a socket takes datagrams from: those that the guest sent to last.
pub const UDP_PEERS: usize = 32;
/// Clients of published UDP ports.
pub const UDP_CLIENTS: usize = 1024;

/// Echo sockets of the host, one for each sender and identifier of the guest.
pub const PINGS: usize = 64;
pub const PING_SILENCE: Duration = Duration::from_secs(30);

/// Questions that wait for a resolver.
pub const DNS_QUERIES: usize = 256;
/// Connections to the resolver, which keep a message in each of four buffers: 17 MiB.
pub const DNS_STREAMS: usize = 64;
/// How long a resolver may take before the next is asked.
pub const DNS_PATIENCE: Duration = Duration::from_secs(3);
/// How often the list of resolvers is gone through.
pub const DNS_ROUNDS: usize = 2;

/// Datagrams of the guest that are being put together.
pub const REASSEMBLIES: usize = 16;
/// Fragments of one of them: 65535 bytes in pieces of an MTU of 576.
pub const FRAGMENTS: usize = 120;
/// RFC 791 §3.2 suggests 15 seconds.
pub const REASSEMBLY_PATIENCE: Duration = Duration::from_secs(15);

/// Frames that wait for the guest, other than those of flows, which wait where they came from.
pub const OUTBOX_BYTES: usize = 2 << 20;
pub const OUTBOX_FRAMES: usize = 4096;

/// Published ports.
pub const PUBLISHED: usize = 256;
/// Connections accepted at once, before the guest's frames have their turn.
pub const ACCEPTS_PER_TURN: usize = 64;
/// How long clients wait where the host gives no more descriptors.
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Edges that one turn handles, so that frames are looked at in between.
pub const DATAGRAMS_PER_EDGE: usize = 64;

/// Addresses of the guest whose hardware address is remembered.
pub const NEIGHBORS: usize = 256;
