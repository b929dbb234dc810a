//! Which packages a set of packages needs: the closure over `Pre-Depends` and `Depends` within one release.
//!
//! Alternatives go to the first that is chosen already, then to the first that exists; a virtual package to its first provider by name.
//! `Recommends` are left out, versions are not compared (one release fits itself), conflicts cannot arise from what bundles ask for.
//! Spec: Debian Policy §7.1, §7.2, §7.5.

use std::collections::{BTreeMap, BTreeSet};

use super::repository::Package;

/// The packages `names` and what they need out of `all`, sorted by name, without those of `without` and what only they need.
///
/// # Errors
/// The name of a package that is needed and that nothing is or provides.
pub fn resolve(all: &[Package], names: &[&str], without: &[&str]) -> Result<Vec<Package>, String> {
    let mut by_name: BTreeMap<&str, &Package> = BTreeMap::new();
    let mut providers: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in all {
        by_name.entry(&package.name).or_insert(package);
        for name in &package.provides {
            providers.entry(name).or_default().insert(&package.name);
        }
    }
    let find = |name: &str| -> Option<&Package> {
        let provider = || by_name.get(providers.get(name)?.first()?).copied();
        by_name.get(name).copied().or_else(provider)
    };
    let mut chosen: BTreeMap<&str, &Package> = BTreeMap::new();
    let mut open: Vec<Vec<String>> = names.iter().rev().map(|name| vec![(*name).to_owned()]).collect();
    while let Some(alternatives) = open.pop() {
        let is_met = |name: &String| {
            let provided = || chosen.values().any(|package| package.provides.contains(name));
            without.contains(&name.as_str()) || chosen.contains_key(name.as_str()) || provided()
        };
        if alternatives.iter().any(is_met) {
            continue;
        }
        let package = alternatives.iter().find_map(|name| find(name)).ok_or_else(|| alternatives.join(" | "))?;
        chosen.insert(&package.name, package);
        open.extend(package.depends.iter().rev().cloned());
    }
    Ok(chosen.into_values().cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::repository::package;

    fn all(text: &str) -> Vec<Package> {
        let hash = "0".repeat(64);
        let whole = |stanza: &str| package(&format!("{stanza}\nVersion: 1\nFilename: f\nSize: 1\nSHA256: {hash}\n"));
        text.split("\n\n").filter_map(whole).collect()
    }

    fn names(text: &str, wanted: &[&str], without: &[&str]) -> Result<String, String> {
        let chosen = resolve(&all(text), wanted, without)?;
        Ok(chosen.iter().map(|package| package.name.as_str()).collect::<Vec<_>>().join(" "))
    }

    const INDEX: &str = "Package: a\nDepends: b (>= 2), c:any | d\nRecommends: x\n\n\
                         Package: b\nPre-Depends: e\nDepends: a\n\nPackage: d\n\nPackage: e\n\nPackage: x";

    #[test]
    fn closure_follows_both_kinds_of_dependency_and_ends_in_circles() {
        assert_eq!(names(INDEX, &["a"], &[]), Ok("a b d e".to_owned()));
    }

    #[test]
    fn alternative_that_is_there_already_is_enough() {
        let index = "Package: a\nDepends: x | y\n\nPackage: x\n\nPackage: y";
        assert_eq!(names(index, &["y", "a"], &[]), Ok("a y".to_owned()));
        assert_eq!(names(index, &["a"], &[]), Ok("a x".to_owned()));
    }

    #[test]
    fn virtual_package_is_its_first_provider() {
        let index = "Package: a\nDepends: v\n\nPackage: q\nProvides: v (= 1)\n\nPackage: p\nProvides: u, v";
        assert_eq!(names(index, &["a"], &[]), Ok("a p".to_owned()));
        assert_eq!(names(index, &["q", "a"], &[]), Ok("a q".to_owned()));
    }

    #[test]
    fn package_that_is_left_out_needs_nothing() {
        assert_eq!(names(INDEX, &["a"], &["b"]), Ok("a d".to_owned()));
    }

    #[test]
    fn absent_package_is_named_with_its_alternatives() {
        assert_eq!(names("Package: a\nDepends: no | nay", &["a"], &[]), Err("no | nay".to_owned()));
        assert_eq!(names("", &["zz"], &[]), Err("zz".to_owned()));
    }
}
