//! Where people's connections arrive: the broker's own TLS, and a client's certificate if it has one.
//!
//! Refuses certificates of another authority than the cluster's for clients, in the handshake, and more than a few
//! connections at once. In the chart it listens on loopback alone, where nothing but a port-forward arrives. The
//! invariant: a name is taken from a certificate only after the certificate was verified.

use std::sync::Arc;

use axum::Extension;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::CertificateDer;
use sidegate_cluster::listen;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{router, Registry, Visitor};
use crate::authority::Authority;
use crate::config::StartError;
use crate::report::Reporter;
use crate::server::{accept_tls, serve, HANDSHAKE};
use crate::task::Tasks;

/// Connections at once.
const CONNECTIONS: usize = 64;
/// What the API server adds to whomever it knows.
const AUTHENTICATED: &str = "system:authenticated";

/// Somebody whose certificate was verified, in the extensions of a request.
#[derive(Debug, Clone)]
pub(super) struct Certified(pub(super) Visitor);

/// Serves until the broker has stopped.
pub async fn run(
    listener: TcpListener,
    authority: Arc<Authority>,
    reporter: Arc<Reporter>,
    registry: Arc<dyn Registry>,
) {
    let tasks = reporter.front.tasks.clone();
    let mut authorities = registry.authorities();
    let routes = router(reporter, registry);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let stop = tasks.stopping();
    let mut acceptor = tls(&authority, &authorities.borrow_and_update());
    loop {
        let next = tokio::select! {
            biased;
            changed = authorities.changed() => {
                if changed.is_err() {
                    return;
                }
                acceptor = tls(&authority, &authorities.borrow_and_update());
                continue;
            }
            next = listen::next(&listener, &stop) => next,
        };
        let Some((stream, _)) = next else { return };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let Some(acceptor) = acceptor.clone() else { continue };
        let (routes, inner) = (routes.clone(), tasks.clone());
        tasks.spawn("people", async move {
            let _slot = slot;
            if let Ok(Some((stream, is_h2))) = tokio::time::timeout(HANDSHAKE, accept_tls(&acceptor, stream)).await {
                one(stream, is_h2, routes, inner).await;
            }
        });
    }
}

async fn one(stream: TlsStream<TcpStream>, is_h2: bool, routes: axum::Router, tasks: Tasks) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let routes = match certificate.map(named_by) {
        // A certificate without a name is nobody's, and no token makes up for it.
        Some(None) => return,
        Some(Some(visitor)) => routes.layer(Extension(Certified(visitor))),
        None => routes,
    };
    serve(stream, is_h2, routes, tasks).await;
}

fn tls(authority: &Authority, clients: &str) -> Option<TlsAcceptor> {
    match config(authority, clients) {
        Ok(config) => Some(TlsAcceptor::from(Arc::new(config))),
        Err(error) => {
            tracing::error!(%error, "the people's face cannot be served");
            None
        }
    }
}

fn config(authority: &Authority, clients: &str) -> Result<ServerConfig, StartError> {
    let found = CertificateDer::pem_slice_iter(clients.as_bytes()).filter_map(Result::ok);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.collect::<Vec<CertificateDer<'static>>>());
    if roots.is_empty() {
        return authority.tls_with(None);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|error| StartError::crypto("the authority of clients", error))?;
    authority.tls_with(Some(verifier))
}

/// Whose certificate it is, by the API server's own rule: the common name is the user, each organization a group.
fn named_by(certificate: &CertificateDer<'_>) -> Option<Visitor> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let mut names = subject.iter_common_name();
    let name = names.next()?.as_str().ok().filter(|name| !name.is_empty())?.to_owned();
    if names.next().is_some() {
        return None;
    }
    let mut groups = Vec::new();
    for organization in subject.iter_organization() {
        groups.push(organization.as_str().ok()?.to_owned());
    }
    groups.push(AUTHENTICATED.to_owned());
    Some(Visitor {
        name,
        groups,
        ..Visitor::default()
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(names: &[(DnType, &str)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_names_a_user_and_groups_as_the_api_server_reads_it() {
        let ada = named_by(&certificate(&[
            (DnType::CommonName, "ada"),
            (DnType::OrganizationName, "security"),
        ]));
        let ada = ada.unwrap();
        assert_eq!(ada.name, "ada");
        assert_eq!(ada.groups, ["security", AUTHENTICATED]);
        assert_eq!(named_by(&certificate(&[(DnType::OrganizationName, "security")])), None);
        assert_eq!(named_by(&certificate(&[(DnType::CommonName, "")])), None);
    }
}
