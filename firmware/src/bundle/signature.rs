//! Who signed a Debian `InRelease` file, and whether to believe it.
//!
//! The trust is in OpenPGP keys of the Debian archive: those shipped in `firmware/keys/`, and those that the host's
//! package `debian-archive-keyring` brought. One valid signature by a key that is neither expired nor revoked is enough,
//! as for apt. Spec: RFC 9580 §7 (cleartext signatures), §5.2.3 (expiry). Time is a parameter.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use pgp::composed::{CleartextSignedMessage, PublicOrSecret, SignedPublicKey, SignedPublicSubKey};
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, Tag, VerifyingKey};

const SHIPPED: [&[u8]; 3] = [
    include_bytes!("../../keys/debian-archive-trixie-automatic.gpg"),
    include_bytes!("../../keys/debian-archive-trixie-stable.gpg"),
    include_bytes!("../../keys/debian-archive-bookworm-automatic.gpg"),
];
/// Below the root of the host.
const HOST_KEYRING: &str = "usr/share/keyrings/debian-archive-keyring.gpg";

/// Why a signed file is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Keys cannot be read.
    #[error("damaged keyring")]
    Keyring(#[source] Box<pgp::errors::Error>),
    /// The file is not signed, or damaged.
    #[error("not a signed file")]
    NotSigned(#[source] Box<pgp::errors::Error>),
    /// No signature by a known key fits the text.
    #[error("no valid signature by a known Debian key (signed by {})", issuers.join(", "))]
    NoValidSignature {
        /// Key identifiers that the signatures name.
        issuers: Vec<String>,
    },
    /// A key that fits has expired or was revoked, or the signature has expired.
    #[error("the signature by {signer} has expired, or its key was revoked")]
    Expired {
        /// The key's fingerprint and owner.
        signer: String,
    },
}

/// A text, and who vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The signed text, with plain newlines.
    pub text: String,
    /// Fingerprint and owner of the key.
    pub signer: String,
}

/// Keys that are trusted to sign Debian's indices.
#[derive(Clone, Debug)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
}

impl Keyring {
    /// The keys shipped with this crate, and those installed below `root` (`/`) by the host's package.
    ///
    /// # Errors
    /// [`SignatureError::Keyring`]
    pub fn of_host(root: &Path) -> Result<Self, SignatureError> {
        let mut keyring = Self { keys: Vec::new() };
        for bytes in SHIPPED {
            keyring.keys.extend(Self::parse(bytes)?.keys);
        }
        if let Ok(bytes) = fs::read(root.join(HOST_KEYRING)) {
            keyring.keys.extend(Self::parse(&bytes)?.keys);
        }
        Ok(keyring)
    }

    /// Reads keys, armored or binary.
    ///
    /// # Errors
    /// [`SignatureError::Keyring`]
    pub fn parse(bytes: &[u8]) -> Result<Self, SignatureError> {
        let damaged = |error| SignatureError::Keyring(Box::new(error));
        let (keys, _) = PublicOrSecret::from_reader_many(bytes).map_err(damaged)?;
        let keys = keys.filter_map(|key| match key {
            Ok(PublicOrSecret::Public(key)) => Some(Ok(key)),
            Ok(PublicOrSecret::Secret(_)) => None,
            Err(error) => Some(Err(error)),
        });
        Ok(Self { keys: keys.collect::<Result<_, _>>().map_err(damaged)? })
    }

    /// Checks the file `signed`, in which text and signatures are together.
    ///
    /// # Errors
    /// [`SignatureError`]
    pub fn verify(&self, signed: &str, now: SystemTime) -> Result<Verified, SignatureError> {
        let (message, _) =
            CleartextSignedMessage::from_string(signed).map_err(|error| SignatureError::NotSigned(Box::new(error)))?;
        let text = message.signed_text();
        let mut expired = None;
        for signature in message.signatures() {
            for key in &self.keys {
                let Some(valid) = check(signature, key, &text, now) else { continue };
                let signer = describe(key);
                if valid {
                    return Ok(Verified { text: text.replace("\r\n", "\n"), signer });
                }
                expired = Some(signer);
            }
        }
        Err(match expired {
            Some(signer) => SignatureError::Expired { signer },
            None => SignatureError::NoValidSignature { issuers: issuers(&message) },
        })
    }
}

fn issuers(message: &CleartextSignedMessage) -> Vec<String> {
    let ids = message.signatures().iter().flat_map(Signature::issuer_key_id);
    ids.map(|id| format!("{id}").to_uppercase()).collect()
}

fn describe(key: &SignedPublicKey) -> String {
    let owner = key.details.users.first().map(|user| String::from_utf8_lossy(user.id.id()).into_owned());
    format!("{} {}", format!("{}", key.fingerprint()).to_uppercase(), owner.unwrap_or_default())
}

/// `None`: `signature` is not by this key, or wrong. `Some(false)`: it is, but out of date.
fn check(signature: &Signature, key: &SignedPublicKey, text: &str, now: SystemTime) -> Option<bool> {
    let signed_by_primary = signature.verify(&key.primary_key, text.as_bytes()).is_ok();
    let current = || is_current(signature, now) && primary_is_current(key, now);
    if signed_by_primary {
        return Some(current());
    }
    let subkey = key.public_subkeys.iter().find(|subkey| signature.verify(&subkey.key, text.as_bytes()).is_ok())?;
    let bound = subkey.verify_bindings(&key.primary_key).is_ok();
    bound.then(|| current() && subkey_is_current(subkey, now))
}

/// The signature's own lifetime.
fn is_current(signature: &Signature, now: SystemTime) -> bool {
    let Some(created) = signature.created().map(SystemTime::from) else { return false };
    lifetime_holds(created, signature.signature_expiration_time().map(Duration::from), now)
}

/// The lifetime is in the certification of the owner's name, as GnuPG reads it. Signatures on the key alone, such as those
/// that appoint revokers, are newer in Debian's keys and say nothing of it; where one does, it must hold too.
fn primary_is_current(key: &SignedPublicKey, now: SystemTime) -> bool {
    if !key.details.revocation_signatures.is_empty() {
        return false;
    }
    let certified = key.details.users.iter().flat_map(|user| {
        let by_itself = move |signature: &&Signature| {
            signature.verify_certification(&key.primary_key, Tag::UserId, &user.id).is_ok()
        };
        user.signatures.iter().filter(by_itself)
    });
    let direct =
        key.details.direct_signatures.iter().filter(|signature| signature.verify_key(&key.primary_key).is_ok());
    let direct = direct.filter(|signature| signature.key_expiration_time().is_some());
    lives(&key.primary_key, certified, now)
        && direct.clone().next().is_none_or(|_| lives(&key.primary_key, direct, now))
}

fn subkey_is_current(subkey: &SignedPublicSubKey, now: SystemTime) -> bool {
    let revoked = subkey.signatures.iter().any(|signature| signature.typ() == Some(SignatureType::SubkeyRevocation));
    !revoked && lives(&subkey.key, subkey.signatures.iter(), now)
}

/// Whether the newest of `self_signatures` lets the key live at `now`.
fn lives<'a>(key: &impl VerifyingKey, self_signatures: impl Iterator<Item = &'a Signature>, now: SystemTime) -> bool {
    let newest = self_signatures.max_by_key(|signature| signature.created().map(SystemTime::from));
    let Some(newest) = newest else { return false };
    lifetime_holds(key.created_at().into(), newest.key_expiration_time().map(Duration::from), now)
}

/// A lifetime of zero means for ever (RFC 9580 §5.2.3.13).
fn lifetime_holds(created: SystemTime, lifetime: Option<Duration>, now: SystemTime) -> bool {
    match lifetime {
        Some(lifetime) if !lifetime.is_zero() => created.checked_add(lifetime).is_some_and(|end| now < end),
        _ => true,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use pgp::composed::{KeyType, SecretKeyParamsBuilder, SignedSecretKey};
    use pgp::ser::Serialize;
    use pgp::types::Password;

    /// A key made for one test.
    pub(crate) fn test_key() -> SignedSecretKey {
        let mut params = SecretKeyParamsBuilder::default();
        params.key_type(KeyType::Ed25519Legacy).can_sign(true).can_certify(true);
        params.primary_user_id("Test Archive <test@example.org>".to_owned());
        params.build().unwrap().generate(rand::thread_rng()).unwrap()
    }

    pub(crate) fn keyring_of(key: &SignedSecretKey) -> Keyring {
        Keyring::parse(&SignedPublicKey::from(key.clone()).to_bytes().unwrap()).unwrap()
    }

    pub(crate) fn sign(text: &str, key: &SignedSecretKey) -> String {
        let message = CleartextSignedMessage::sign(rand::thread_rng(), text, &key.primary_key, &Password::empty());
        message.unwrap().to_armored_string(Default::default()).unwrap()
    }

    #[test]
    fn signed_text_is_returned_with_its_signer() {
        let key = test_key();
        let verified = keyring_of(&key).verify(&sign("Suite: x\nDate: y\n", &key), SystemTime::now()).unwrap();
        assert_eq!(verified.text.trim_end(), "Suite: x\nDate: y");
        assert!(verified.signer.ends_with("Test Archive <test@example.org>"));
    }

    #[test]
    fn changed_text_is_refused() {
        let key = test_key();
        let signed = sign("Suite: x\n", &key).replace("Suite: x", "Suite: y");
        let result = keyring_of(&key).verify(&signed, SystemTime::now());
        assert!(matches!(result, Err(SignatureError::NoValidSignature { issuers }) if issuers.len() == 1));
    }

    #[test]
    fn unknown_key_is_refused() {
        let signed = sign("Suite: x\n", &test_key());
        let result = keyring_of(&test_key()).verify(&signed, SystemTime::now());
        assert!(matches!(result, Err(SignatureError::NoValidSignature { .. })));
    }

    #[test]
    fn unsigned_text_is_refused() {
        let result = keyring_of(&test_key()).verify("Suite: x\n", SystemTime::now());
        assert!(matches!(result, Err(SignatureError::NotSigned(_))));
    }

    #[test]
    fn garbage_is_no_keyring() {
        assert!(
            Keyring::parse(&[0x99, 0x01, 0x0d, 0x04, 0, 0]).is_err_and(|e| matches!(e, SignatureError::Keyring(_)))
        );
    }

    #[test]
    fn signature_of_an_expired_key_is_refused() {
        let keyring = Keyring::of_host(Path::new("/nonexistent")).unwrap();
        let mut key = test_key();
        for user in &mut key.details.users {
            *user = expiring(&key.primary_key, user.id.clone());
        }
        let signed = sign("Suite: x\n", &key);
        let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
        let result = keyring_of(&key).verify(&signed, in_an_hour);
        assert!(matches!(result, Err(SignatureError::Expired { signer }) if signer.contains("Test Archive")));
        assert!(keyring_of(&key).verify(&signed, SystemTime::now()).is_ok());
        assert!(matches!(keyring.verify(&signed, SystemTime::now()), Err(SignatureError::NoValidSignature { .. })));
    }

    /// The owner's name, certified for a key that lives for ten minutes.
    fn expiring(key: &pgp::packet::SecretKey, id: pgp::packet::UserId) -> pgp::types::SignedUser {
        use pgp::packet::{SignatureConfig, Subpacket, SubpacketData};
        let mut config = SignatureConfig::from_key(rand::thread_rng(), key, SignatureType::CertPositive).unwrap();
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(pgp::types::Timestamp::now())).unwrap(),
            Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
            Subpacket::regular(SubpacketData::KeyExpirationTime(pgp::types::Duration::from_secs(600))).unwrap(),
        ];
        let public = key.public_key();
        let signature = config.sign_certification(key, &public, &Password::empty(), Tag::UserId, &id).unwrap();
        pgp::types::SignedUser::new(id, vec![signature])
    }

    #[test]
    fn shipped_keys_are_current_and_expire() {
        let keyring = Keyring::of_host(Path::new("/nonexistent")).unwrap();
        assert_eq!(keyring.keys.len(), 3);
        let at = |years: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(years * 31_557_600);
        assert!(keyring.keys.iter().all(|key| primary_is_current(key, at(56))));
        assert!(keyring.keys.iter().all(|key| !primary_is_current(key, at(66))));
    }
}
