//! Stands in for KVM's back end where there is none: on everything but Linux on arm64.

use std::path::Path;

use super::{Backend, Hypervisor, Unusable};

/// Says that there is none, and why.
///
/// # Errors
/// [`Unusable`], always.
pub fn open() -> Result<Box<dyn Hypervisor>, Unusable> {
    let reason = reason(std::env::consts::OS, std::env::consts::ARCH, Path::new("/dev/kvm").exists());
    Err(Unusable { backend: Backend::Kvm, reason: reason.into() })
}

fn reason(os: &str, arch: &str, has_device: bool) -> String {
    match (os, has_device) {
        ("linux", true) => format!("/dev/kvm is there, but runs {arch} guests only: arm64 guests need an arm64 host"),
        ("linux", false) => format!("arm64 guests need an arm64 host, this one is {arch}"),
        _ => "needs Linux on arm64".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_tells_a_host_of_another_architecture_from_one_without_kvm() {
        assert!(reason("linux", "x86_64", true).contains("runs x86_64 guests only"));
        assert!(reason("linux", "x86_64", false).contains("this one is x86_64"));
        assert_eq!(reason("macos", "aarch64", false), "needs Linux on arm64");
    }
}
