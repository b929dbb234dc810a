//! What the agent is to do about a piece of news, given what the host has now and what the guest knew before. Decides; acts nowhere.

use std::ffi::{CStr, CString};

use minivmm_devices::virtio::fs::attr::{Attr, mode};
use minivmm_devices::virtio::fs::coherence::{Coherence, Pretence};
use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::{FileSystem, NodeId};
use minivmm_devices::virtio::fs::name::Name;
use minivmm_firmware::agent::protocol::Kind;

use super::ShareWatch;
use super::events::{Change, News};

/// A command for the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub kind: Kind,
    /// The file, or the directory of the name.
    pub node: NodeId,
    /// The name, if the kind has one.
    pub name: Option<CString>,
    /// The other name and its directory, for a move.
    pub other: Option<(NodeId, CString)>,
    /// See the protocol.
    pub file_type: u8,
}

impl Order {
    /// An order about a node.
    pub fn node(kind: Kind, node: NodeId) -> Self {
        Self { kind, node, name: None, other: None, file_type: 0 }
    }

    fn name(kind: Kind, directory: NodeId, name: &CStr, file_type: u8) -> Self {
        Self { name: Some(name.to_owned()), file_type, ..Self::node(kind, directory) }
    }

    /// What the agent must find while it does this.
    pub fn pretence(&self) -> Option<(NodeId, &CStr, Pretence)> {
        match (self.kind, self.name.as_deref(), self.other.as_ref()) {
            (Kind::Created, Some(name), _) => Some((self.node, name, Pretence::Absent)),
            (Kind::Moved, _, Some((directory, name))) => Some((*directory, name, Pretence::Absent)),
            (Kind::Deleted, Some(name), _) => {
                Some((self.node, name, Pretence::Present { is_directory: self.file_type == DIRECTORY }))
            }
            _ => None,
        }
    }
}

/// `DT_*` of a mode.
fn file_type(mode_bits: u32) -> u8 {
    u8::try_from((mode_bits & mode::TYPE) >> 12).unwrap_or(0)
}

const DIRECTORY: u8 = 4;

/// What a name stands for on the host, and whether the guest knew that it does.
struct Found {
    node: NodeId,
    attr: Attr,
    /// The guest knows the node.
    is_known: bool,
    /// The guest knows the node by this name.
    is_placed: bool,
}

/// Whether the guest is changing what `news` are about, so that they must wait.
pub fn is_unsettled(watch: &ShareWatch, news: &News) -> bool {
    match news {
        News::Changed { name: None, .. } => false,
        News::Changed { directory, name: Some(name), .. } => watch.is_changing(*directory, name),
        News::Moved { from, to, .. } => watch.is_changing(from.0, &from.1) || watch.is_changing(to.0, &to.1),
    }
}

/// Appends to `orders` what `news` makes necessary.
pub fn decide(watch: &ShareWatch, news: &News, orders: &mut Vec<Order>) {
    match news {
        News::Changed { directory, name: None, change } => of_directory(watch, *directory, *change, orders),
        News::Changed { directory, name: Some(name), change } => of_name(watch, *directory, name, *change, orders),
        News::Moved { from, to, is_directory } => of_move(watch, from, to, *is_directory, orders),
    }
}

fn of_directory(watch: &ShareWatch, directory: NodeId, change: Change, orders: &mut Vec<Order>) {
    let Ok(attr) = watch.share.getattr(directory, None) else { return };
    if change.attributes && !watch.is_own_change(directory, &attr, false) {
        orders.push(Order::node(Kind::Attributes, directory));
    }
}

fn find(watch: &ShareWatch, directory: NodeId, name: &CStr) -> Result<Found, Errno> {
    let name = Name::new(name)?;
    let placed = watch.share.known_as(directory, name.as_c_str());
    let entry = watch.share.lookup(directory, name)?;
    // Takes our own lookup back: what nobody knows then, the guest did not know.
    let is_known = !watch.share.forget(entry.node, 1);
    if !is_known {
        watch.forgotten(entry.node);
    }
    Ok(Found { node: entry.node, attr: entry.attr, is_known, is_placed: is_known && placed == Some(entry.node) })
}

fn of_name(watch: &ShareWatch, directory: NodeId, name: &CStr, change: Change, orders: &mut Vec<Order>) {
    let is_own = watch.is_own_name(directory, name);
    let was = watch.share.known_as(directory, name);
    match find(watch, directory, name) {
        Ok(found) => {
            // The guest knows that the name stands for this: it did it, or has asked since. A name that was replaced is told of even so, for
            // those who watch.
            let is_other = change.appeared || change.vanished;
            let is_news = is_other && !(found.is_placed && (is_own || !change.vanished));
            if is_news {
                orders.push(Order::name(Kind::Created, directory, name, file_type(found.attr.mode)));
                look(directory, orders);
            } else if is_other && !is_own {
                look(directory, orders);
            }
            let is_touched = change.content || change.attributes;
            if !is_news && is_touched && found.is_known && !watch.is_own_change(found.node, &found.attr, change.content)
            {
                let kind = if change.content { Kind::Modified } else { Kind::Attributes };
                orders.push(Order::node(kind, found.node));
            }
        }
        // It removed it itself.
        Err(Errno::ENOENT | Errno::ESTALE) if is_own && was.is_none() => {}
        Err(Errno::ENOENT | Errno::ESTALE) => {
            // A directory that was moved away lives on elsewhere: to the guest's kernel a removed one is dead for good.
            let is_gone = change.vanished && !(change.is_directory && change.moved.is_some());
            let kind = if is_gone { Kind::Deleted } else { Kind::LookUp };
            orders.push(Order::name(kind, directory, name, if change.is_directory { DIRECTORY } else { 0 }));
            look(directory, orders);
        }
        // The host cannot say: the guest is to ask itself.
        Err(_) => orders.push(Order::name(Kind::LookUp, directory, name, 0)),
    }
}

fn of_move(
    watch: &ShareWatch,
    from: &(NodeId, CString),
    to: &(NodeId, CString),
    is_directory: bool,
    orders: &mut Vec<Order>,
) {
    if watch.is_own_name(from.0, &from.1) && watch.is_own_name(to.0, &to.1) {
        return;
    }
    let was = watch.share.known_as(from.0, &from.1);
    match find(watch, to.0, &to.1) {
        Ok(found) if found.is_known && was == Some(found.node) => {
            orders.push(Order { other: Some(to.clone()), ..Order::name(Kind::Moved, from.0, &from.1, 0) });
            look(from.0, orders);
            look(to.0, orders);
        }
        _ => {
            let half = Change { is_directory, moved: Some(0), ..Change::default() };
            of_name(watch, from.0, &from.1, Change { vanished: true, ..half }, orders);
            of_name(watch, to.0, &to.1, Change { appeared: true, ..half }, orders);
        }
    }
}

/// Appends to `orders` what is to be done where `order` failed in the guest, which knew something else than we thought: it had found out by itself
/// that the old name is gone, say.
pub fn instead(watch: &ShareWatch, order: &Order, orders: &mut Vec<Order>) {
    let Some(name) = &order.name else { return };
    match (order.kind, &order.other) {
        (Kind::Moved, Some((directory, new_name))) => {
            orders.push(Order::name(Kind::LookUp, order.node, name, 0));
            let change = Change { appeared: true, vanished: true, moved: Some(0), ..Change::default() };
            of_name(watch, *directory, new_name, change, orders);
        }
        (Kind::Created | Kind::Deleted, _) => orders.push(Order::name(Kind::LookUp, order.node, name, 0)),
        _ => {}
    }
}

/// The listing of `directory` has changed: once at the end is enough.
fn look(directory: NodeId, orders: &mut Vec<Order>) {
    let order = Order::node(Kind::Look, directory);
    orders.retain(|other| *other != order);
    orders.push(order);
}
