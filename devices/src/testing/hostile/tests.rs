//! The scripts on random bytes.

use proptest::prelude::*;

use super::{blk, fs, net, pci, queue, registers, transport, vsock};
use crate::testing::property::{config, script};

proptest! {
    #![proptest_config(config(10_000))]

    #[test]
    fn queue_is_what_a_naive_walk_of_its_rings_says(script in script::<queue::Script>(1200)) {
        queue::run(&script);
    }
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn device_survives_any_access_and_works_after_a_reset(script in script::<transport::Script>(800)) {
        transport::run(&script);
    }
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn function_survives_any_access_and_works_after_a_reset(script in script::<pci::Script>(800)) {
        pci::run(&script);
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn block_request_has_the_effect_of_a_naive_disk(script in script::<blk::Script>(700)) {
        blk::run(&script);
    }
}

proptest! {
    #![proptest_config(config(4000))]

    #[test]
    fn device_after_a_reset_is_as_after_power_on(script in script::<registers::Script>(800)) {
        registers::run(&script);
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn socket_device_keeps_connections_apart_and_whole(script in script::<vsock::Script>(1500)) {
        vsock::run(&script);
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn shared_folder_knows_what_the_guest_was_told_and_no_more(script in script::<fs::Script>(1500)) {
        fs::run(&script);
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn network_device_loses_only_what_lies(script in script::<net::Script>(1500)) {
        net::run(&script);
    }
}
