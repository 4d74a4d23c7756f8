//! TLS from a certificate and a key in PEM files.

use anyhow::{Context, Result, bail};
use axum_server::tls_rustls::RustlsConfig;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{path::PathBuf, sync::Arc};

/// Where certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// PEM: the server's certificate, then those that lead to a root.
    pub cert: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

impl Tls {
    /// Reads both.
    ///
    /// # Errors
    /// Names the file that can't be read or doesn't hold what it should, or says that the two don't
    /// belong together.
    pub(super) fn config(&self) -> Result<RustlsConfig> {
        let (cert, key) = (self.cert.display(), self.key.display());
        let read = |error: &rustls::pki_types::pem::Error, name, path| {
            format!("--tls-{name} {path}: {error}")
        };
        let chain = CertificateDer::pem_file_iter(&self.cert)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|e| anyhow::anyhow!(read(&e, "cert", &cert)))?;
        if chain.is_empty() {
            bail!("--tls-cert {cert}: holds no certificate (expected PEM)");
        }
        let private = PrivateKeyDer::from_pem_file(&self.key);
        let private = private.map_err(|e| anyhow::anyhow!(read(&e, "key", &key)))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("TLS")?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .with_context(|| format!("--tls-cert {cert} with --tls-key {key}"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(RustlsConfig::from_config(Arc::new(config)))
    }
}
