//! `fuse-backend-rs-daemon SOCKET DIRECTORY`: serves a directory by fuse-backend-rs's passthrough file system, as a vhost-user device.

use std::io;
use std::sync::{Arc, Mutex};

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueOwnedT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

struct Backend {
    server: Server<Arc<PassthroughFs>>,
    memory: Option<Memory>,
    event_idx: bool,
}

impl Backend {
    fn serve(&self, vring: &VringMutex) -> io::Result<()> {
        let Some(memory) = &self.memory else { return Ok(()) };
        loop {
            let guard = memory.memory();
            let chains: Vec<_> = vring.get_mut().get_queue_mut().iter(guard.clone()).map_err(io::Error::other)?.collect();
            if chains.is_empty() {
                return Ok(());
            }
            for chain in chains {
                let head = chain.head_index();
                let reader = Reader::from_descriptor_chain(&*guard, chain.clone()).map_err(io::Error::other)?;
                let writer = VirtioFsWriter::new(&*guard, chain).map_err(io::Error::other)?;
                let written = self.server.handle_message(reader, Writer::from(writer), None, None);
                let written = u32::try_from(written.map_err(io::Error::other)?).map_err(io::Error::other)?;
                vring.add_used(head, written).map_err(io::Error::other)?;
                if !self.event_idx || vring.needs_notification().map_err(io::Error::other)? {
                    vring.signal_used_queue()?;
                }
            }
        }
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        1024
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
    }

    fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    fn update_memory(&mut self, memory: Memory) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn handle_event(&mut self, device_event: u16, _: EventSet, vrings: &[VringMutex], _: usize) -> io::Result<()> {
        let vring = &vrings[usize::from(device_event)];
        if !self.event_idx {
            return self.serve(vring);
        }
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            self.serve(vring)?;
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }

    fn exit_event(&self, _: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, directory] = &arguments[..] else { panic!("usage: SOCKET DIRECTORY") };
    let config = Config {
        root_dir: directory.clone(),
        cache_policy: CachePolicy::Auto,
        do_import: true,
        // As the others: without it, every WRITE of a guest costs a GETXATTR more.
        killpriv_v2: true,
        ..Config::default()
    };
    let files = PassthroughFs::<()>::new(config).expect("a directory");
    files.import().expect("a directory");
    let backend = Backend { server: Server::new(Arc::new(files)), memory: None, event_idx: false };
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("fuse-backend-rs".to_owned(), Arc::new(Mutex::new(backend)), memory)
        .expect("a daemon");
    let mut listener = Listener::new(socket, true).expect("a socket");
    daemon.start(&mut listener).expect("a front end");
    // The front end hangs up when it is done.
    drop(daemon.wait());
}
