//! Placeholder until the CPU lands.
use std::sync::Arc;
use super::{Hypervisor, HypervisorError, Vm, VmSpec};
/// soft
#[derive(Debug)]
pub struct SoftHypervisor;
impl Hypervisor for SoftHypervisor {
    fn name(&self) -> &'static str { "soft" }
    fn create_vm(&self, _spec: &VmSpec) -> Result<Arc<dyn Vm>, HypervisorError> { Err(HypervisorError::CreateVcpu { index: 0 }) }
}
