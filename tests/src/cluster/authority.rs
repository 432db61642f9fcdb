//! Certificate authorities of a cluster's own, made with the cluster and gone with it.
//!
//! Absent: reading certificates, and revoking them, which Kubernetes cannot do either.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// One authority: its certificate, and what signs.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM form.
pub struct Certified {
    /// The certificate.
    pub certificate: String,
    /// Its private key, by PKCS #8.
    pub key: String,
}

/// A request for a certificate of this user of this group and for these names, in PEM form.
///
/// # Errors
/// Where a name is none.
pub(super) fn request(user: &str, group: &str, names: &[&str]) -> Result<String> {
    let names: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, group);
    params.distinguished_name.push(DnType::CommonName, user);
    Ok(params.serialize_request(&KeyPair::generate()?)?.pem()?)
}

impl Authority {
    /// One with a new key, under the name by which its certificates refer to it.
    ///
    /// # Errors
    /// Where no key can be made.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: key.serialize_pem(), issuer: Issuer::new(params, key) })
    }

    /// Its own certificate, in PEM form.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key, in PEM form: for whoever signs in its name.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// For a server of these names and addresses.
    ///
    /// # Errors
    /// Where one is no name of a host.
    pub fn server(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Certified> {
        let names = names.iter().map(|it| (*it).to_owned());
        let all: Vec<String> = names.chain(addresses.iter().map(IpAddr::to_string)).collect();
        let mut params = CertificateParams::new(all)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// For a client whom Kubernetes takes for this user of these groups.
    ///
    /// # Errors
    /// Where there are more than two groups, which is as many as `rcgen` puts into a name.
    pub fn client(&self, user: &str, groups: &[String], expired: bool) -> Result<Certified> {
        ensure!(groups.len() <= 2, "a certificate of the tests has two groups at most");
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        // The same attribute twice, which `rcgen` takes for two.
        let organization = DnType::CustomDnType(vec![2, 5, 4, 10]);
        for (kind, group) in [DnType::OrganizationName, organization].into_iter().zip(groups) {
            params.distinguished_name.push(kind, group);
        }
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Certified> {
        let key = KeyPair::generate()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certified { certificate, key: key.serialize_pem() })
    }
}
