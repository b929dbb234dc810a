//! How property tests are run: the same cases each time, unless the environment says otherwise.

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::hostile::decode;

/// The seed of every property test that is given no other.
const SEED: u64 = 0x6d69_6e69_766d_6d31;

/// `cases` cases from a fixed seed. `PROPTEST_RNG_SEED` and `PROPTEST_CASES` ask for others; what a run used is printed.
pub fn config(cases: u32) -> ProptestConfig {
    let from_environment = ProptestConfig::default();
    let rng_seed = match from_environment.rng_seed {
        RngSeed::Random => RngSeed::Fixed(SEED),
        fixed @ RngSeed::Fixed(_) => fixed,
    };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { from_environment.cases } else { cases };
    println!("to repeat: PROPTEST_RNG_SEED={rng_seed} PROPTEST_CASES={cases} cargo test -p minivmm-devices");
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..from_environment }
}

/// Scripts decoded from up to `max_bytes` random bytes.
pub fn script<T>(max_bytes: usize) -> impl Strategy<Value = T>
where
    T: for<'a> arbitrary::Arbitrary<'a> + std::fmt::Debug,
{
    prop::collection::vec(any::<u8>(), 0..max_bytes).prop_map(|bytes| decode(&bytes).expect("missing bytes are zeroes"))
}
