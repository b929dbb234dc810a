//! Names as guests have them.

use minivmm_devices::virtio::fs::file_system::FileSystem;
use minivmm_devices::virtio::fs::name::Name;

use super::support::{READ_WRITE, ROOT, Shared, creation, unprivileged};
use crate::host::fs::Ownership;

#[test]
fn name_of_any_bytes_is_kept() {
    unprivileged(|| {
        let shared = Shared::new(Ownership::Auto);
        let longest = std::ffi::CString::new(vec![b'x'; 255]).unwrap();
        for name in [c"\xff\xfe", c"a\nb", c"A", c"a", c"e\xcc\x81", c"\xc3\xa9", longest.as_c_str()] {
            let name = Name::new(name).unwrap();
            let (entry, _) = shared.share.create(ROOT, name, READ_WRITE, &creation(0o644)).unwrap();
            assert_eq!(shared.share.lookup(ROOT, name).unwrap().node, entry.node);
        }
        assert_eq!(shared.share.known_nodes(), 7);
    });
}
