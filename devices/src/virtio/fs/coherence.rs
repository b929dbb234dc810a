//! Changes that the host makes to the share behind the guest's back, and who tells the guest of them.
//!
//! A stock Linux has no way to be told over virtio-fs: what it was given with a long timeout is wrong as soon as a host program changes
//! it. So the server gives long timeouts, negative entries and `KEEP_CACHE` only for what somebody *watches and corrects* (a watcher on
//! the host with an agent in the guest); for the rest, timeouts are short and every open checks whether the file changed.
//!
//! The rule that makes this right: something is watched *before* the server looks at it, so that a change between the look and the reply is
//! reported as well.

use super::file_system::NodeId;
use super::name::Name;

/// Watches directories of the share and corrects what the guest knows of them. Calls come from the workers and must not wait for the
/// guest.
pub trait Coherence: Send + Sync {
    /// The guest is about to learn something of the names in `directory`, or of what they stand for (also that one does not exist).
    /// Whether every change of these from now on will be corrected in the guest soon: then the guest may keep it for long. Costs
    /// next to nothing for a directory that is watched already.
    fn watch(&self, directory: NodeId) -> bool;

    /// Whether attributes and data of `node` itself are watched, as one that was looked up in a watched directory is (other than by
    /// another of its names).
    fn is_watched(&self, node: NodeId) -> bool;

    /// `node`, which had been looked up in `directory` under a watch, has been told to the guest.
    fn learned(&self, directory: NodeId, node: NodeId);

    /// The guest forgot `node`; its number comes to mean nothing.
    fn forgotten(&self, node: NodeId);

    /// The guest itself is about to make, remove, move or replace `name` in `directory`: what the watcher hears of it is no news, and what
    /// the guest knows of the name is not settled until [`Self::changed_name`].
    fn changing_name(&self, directory: NodeId, name: Name<'_>);

    /// The guest itself has tried to; called once for each [`Self::changing_name`]. `is_new`: what the name stands for, if it does, was made by
    /// that, and its kernel knows all of it.
    fn changed_name(&self, directory: NodeId, name: Name<'_>, is_new: bool);

    /// The guest itself has changed content or attributes of `node`, in a way after which its kernel asks for them again.
    fn changed_content(&self, node: NodeId);

    /// The guest unmounted or went away: it knows nothing any more.
    fn reset(&self);

    /// Whether `pid` is the agent: what it "changes" is meant to make the guest look again and is answered without touching the host.
    fn is_agent(&self, pid: u32) -> bool;

    /// What the agent is to find where it looks up `name` in `directory`, if not what the host has.
    fn pretence(&self, directory: NodeId, name: Name<'_>) -> Option<Pretence>;
}

/// What the agent finds, so that it can repeat before the guest's kernel what the host has done already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pretence {
    /// Nothing: the agent is about to make what is there.
    Absent,
    /// Something that is there no more: the agent is about to remove it.
    Present {
        /// As a directory.
        is_directory: bool,
    },
}
