//! What a watcher of the host's changes needs to know of a share: from any thread, at any time.

use std::ffi::CStr;
use std::sync::Arc;

use minivmm_devices::virtio::fs::errno::Errno;
use minivmm_devices::virtio::fs::file_system::NodeId;

use super::descriptors::Descriptor;
use super::share::Share;

impl Share {
    /// A descriptor of the directory `node`, by which it can be watched: it may be closed afterwards.
    ///
    /// # Errors
    /// `ESTALE` if the guest does not know it, or it cannot be found; the host's.
    pub fn directory(&self, node: NodeId) -> Result<Arc<Descriptor>, Errno> {
        self.descriptor(&self.nodes.get(node)?)
    }

    /// The node that the guest knows as `name` in `directory`, as far as this server has been told.
    pub fn known_child(&self, directory: NodeId, name: &CStr) -> Option<NodeId> {
        let child = self.nodes.get(directory).ok()?.child(name)?;
        (child.lookups() > 0).then_some(child.id)
    }

    /// How many nodes the guest knows, beside the root.
    pub fn known_nodes(&self) -> usize {
        self.nodes.count()
    }
}
