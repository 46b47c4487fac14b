//! The login at the target: start-up packet, exactly the exchange the lease calls for, and what the server reports.
//!
//! It refuses AuthenticationOk without that exchange, a second request in mid-exchange, a missing server signature,
//! md5 and cleartext unless the Target says so, and everything else a server may ask. The server's own error texts
//! are kept for the record only after the secret has been cut out of them.
//! Invariant: a secret leaves only inside verified TLS, or by a mechanism that does not reveal it.

use std::future::Future;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use sidegate_policies::api::target::WeakLogin;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::super::codec::error::Fields;
use super::super::codec::{startup, write, CodecError, Frame, Piece, Reader, ServerScanner};
use super::scram::{self, ChannelBinding, Salted, ScramError};
use super::{md5, oauth};
use crate::credentials::{LeaseHandle, LeaseMaterial};

/// Messages one login may take.
const MAX_MESSAGES: usize = 256;
/// Bytes one login may take.
const MAX_BYTES: usize = 256 * 1024;

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The connection broke.
    #[error("the connection broke during the login: {0}")]
    Io(#[from] std::io::Error),
    /// The server's bytes make no sense.
    #[error("the server broke the protocol during the login: {0}")]
    Codec(#[from] CodecError),
    /// The SCRAM exchange failed.
    #[error("the SCRAM exchange failed: {0}")]
    Scram(#[from] ScramError),
    /// The server refused; the text has been scrubbed.
    #[error("the server refused the login: {code} {message}")]
    Refused {
        /// Its SQLSTATE.
        code: String,
        /// Its message.
        message: String,
    },
    /// The server asked for something we do not do here.
    #[error("{0}")]
    Mechanism(&'static str),
    /// A message out of place.
    #[error("the server sent an unexpected message during the login")]
    Unexpected,
    /// Work off the runtime was lost.
    #[error("the login's computation was lost")]
    Lost,
}

/// The TLS channel's certificate hash for tls-server-end-point, where there is verified TLS.
#[derive(Debug, Clone, Default)]
pub struct Binding {
    /// Whether the line is verified TLS.
    pub tls: bool,
    /// The hash, if the certificate's algorithm defines one.
    pub end_point: Option<Vec<u8>>,
}

/// What to log in with.
pub struct LoginPlan<'a> {
    /// Start-up parameters.
    pub parameters: &'a [(String, String)],
    /// Protocol minor to ask for.
    pub minor: u16,
    /// The lease; it also keeps the salted password.
    pub lease: &'a LeaseHandle,
    /// What the Target allows.
    pub weak: WeakLogin,
    /// The channel.
    pub binding: Binding,
}

/// A finished login.
#[derive(Debug, Clone, Default)]
pub struct LoggedIn {
    /// What the server reported.
    pub reported: Vec<(String, String)>,
    /// The key for cancelling, if it gave one.
    pub cancel: Option<(i32, Bytes)>,
    /// The protocol minor agreed on.
    pub minor: u16,
    /// How it was done.
    pub mechanism: &'static str,
    /// The transaction status.
    pub status: u8,
}

impl LoggedIn {
    /// A reported parameter.
    pub fn reported(&self, name: &str) -> Option<&str> {
        self.reported
            .iter()
            .rfind(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// The server's major version, 0 if it did not say.
    pub fn major(&self) -> u32 {
        let version = self.reported("server_version").unwrap_or_default();
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    }
}

/// Runs the costly step off the runtime.
pub trait Off {
    /// Runs `work` on a blocking thread.
    fn salted(&self, work: Box<dyn FnOnce() -> Salted + Send>) -> impl Future<Output = Option<Salted>> + Send;
}

impl Off for crate::task::Tasks {
    async fn salted(&self, work: Box<dyn FnOnce() -> Salted + Send>) -> Option<Salted> {
        self.blocking(work).await.ok()
    }
}

/// Logs in. The caller sets the deadline.
pub async fn login<S>(
    stream: &mut S,
    scanner: &mut ServerScanner,
    plan: &LoginPlan<'_>,
    off: &impl Off,
) -> Result<LoggedIn, LoginError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let pairs = plan
        .parameters
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let mut line = Line {
        stream,
        scanner,
        messages: 0,
        bytes: 0,
    };
    line.send(&startup::startup_message(plan.minor, pairs)).await?;
    let mut done = LoggedIn {
        minor: plan.minor,
        status: b'I',
        ..LoggedIn::default()
    };
    done.mechanism = authenticate(&mut line, plan, &mut done, off).await?;
    settle(&mut line, plan, &mut done).await?;
    Ok(done)
}

struct Line<'a, S> {
    stream: &'a mut S,
    scanner: &'a mut ServerScanner,
    messages: usize,
    bytes: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<'_, S> {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), LoginError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn next(&mut self) -> Result<Frame, LoginError> {
        loop {
            if let Piece::Frame(frame) = self.scanner.next(false)? {
                self.messages = self.messages.saturating_add(1);
                if self.messages > MAX_MESSAGES {
                    return Err(LoginError::Unexpected);
                }
                return Ok(frame);
            }
            self.scanner.buffer().reserve(4096);
            let read = self.stream.read_buf(self.scanner.buffer()).await?;
            self.bytes = self.bytes.saturating_add(read);
            if read == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            if self.bytes > MAX_BYTES {
                return Err(LoginError::Unexpected);
            }
        }
    }

    /// The next authentication request: its code and data. Errors of the server end the login here.
    async fn request(&mut self, plan: &LoginPlan<'_>, done: &mut LoggedIn) -> Result<(i32, Bytes), LoginError> {
        loop {
            let frame = self.next().await?;
            match frame.tag() {
                b'R' => {
                    let code = frame.reader().i32()?;
                    return Ok((code, frame.payload_bytes().slice(4..)));
                }
                b'v' => negotiate(&frame, plan, done)?,
                b'N' => {}
                b'E' => return Err(refused(&frame, plan)),
                _ => return Err(LoginError::Unexpected),
            }
        }
    }
}

fn negotiate(frame: &Frame, plan: &LoginPlan<'_>, done: &mut LoggedIn) -> Result<(), LoginError> {
    let mut reader = frame.reader();
    // Servers before 18 send the minor alone, later ones the whole version; the minor is the low half of both.
    let minor = u16::try_from(reader.i32()? & 0xffff).map_err(|_| LoginError::Unexpected)?;
    if minor > plan.minor {
        return Err(LoginError::Unexpected);
    }
    done.minor = minor;
    Ok(())
}

fn refused(frame: &Frame, plan: &LoginPlan<'_>) -> LoginError {
    match Fields::decode(frame) {
        Err(error) => LoginError::Codec(error),
        Ok(fields) => LoginError::Refused {
            code: fields.text(b'C'),
            message: without_secret(&fields.text(b'M'), plan.lease.expose()),
        },
    }
}

fn without_secret(text: &str, material: &LeaseMaterial) -> String {
    match secret_of(material) {
        None | Some("") => text.to_owned(),
        Some(secret) => text.replace(secret, "***"),
    }
}

fn secret_of(material: &LeaseMaterial) -> Option<&str> {
    match material {
        LeaseMaterial::Password { password, .. } => Some(password.expose()),
        LeaseMaterial::Bearer { token, .. } => Some(token.expose()),
        LeaseMaterial::None { .. } => None,
    }
}

async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line<'_, S>,
    plan: &LoginPlan<'_>,
    done: &mut LoggedIn,
    off: &impl Off,
) -> Result<&'static str, LoginError> {
    let (code, data) = line.request(plan, done).await?;
    let mechanism = match (code, plan.lease.expose()) {
        (0, LeaseMaterial::None { .. }) => return Ok("none"),
        (0, _) => {
            return Err(LoginError::Mechanism(
                "the server let us in without asking for the credential",
            ))
        }
        (_, LeaseMaterial::None { .. }) => {
            return Err(LoginError::Mechanism(
                "the server asks for a credential and the Target has none",
            ))
        }
        (3, material) => cleartext(line, plan, material).await?,
        (5, LeaseMaterial::Password { user, password }) => {
            md5_exchange(line, plan, user, password.expose(), &data).await?
        }
        (10, LeaseMaterial::Password { password, .. }) => {
            return scram_exchange(line, plan, done, &data, password.expose(), off).await
        }
        (10, LeaseMaterial::Bearer { token, .. }) => {
            return oauth_exchange(line, plan, done, &data, token.expose()).await
        }
        (7..=9, _) => return Err(LoginError::Mechanism("GSS and SSPI logins are not supported")),
        _ => {
            return Err(LoginError::Mechanism(
                "the server asks for a login the lease does not fit",
            ))
        }
    };
    match line.request(plan, done).await? {
        (0, _) => Ok(mechanism),
        _ => Err(LoginError::Mechanism("the server asked a second time in mid-exchange")),
    }
}

/// Whether a login that reveals the credential may run on this line.
fn may_reveal(plan: &LoginPlan<'_>) -> bool {
    match plan.weak {
        WeakLogin::Refuse => false,
        WeakLogin::InsideTls => plan.binding.tls,
        WeakLogin::Anywhere => true,
    }
}

async fn cleartext<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line<'_, S>,
    plan: &LoginPlan<'_>,
    material: &LeaseMaterial,
) -> Result<&'static str, LoginError> {
    let (secret, mechanism) = match material {
        LeaseMaterial::Password { password, .. } if may_reveal(plan) => (password.expose(), "cleartext"),
        LeaseMaterial::Password { .. } => {
            return Err(LoginError::Mechanism(
                "the server asks for the password in clear and the Target does not allow it",
            ))
        }
        // A short-lived token as password, as clouds do it.
        LeaseMaterial::Bearer { token, .. } if plan.binding.tls => (token.expose(), "token-as-password"),
        _ => return Err(LoginError::Mechanism("a token may only cross verified TLS")),
    };
    line.send(secret_message(secret).as_slice()).await?;
    Ok(mechanism)
}

async fn md5_exchange<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line<'_, S>,
    plan: &LoginPlan<'_>,
    user: &str,
    password: &str,
    salt: &[u8],
) -> Result<&'static str, LoginError> {
    if !may_reveal(plan) {
        return Err(LoginError::Mechanism(
            "the server asks for an md5 login and the Target does not allow it",
        ));
    }
    let salt: [u8; 4] = salt.try_into().map_err(|_| LoginError::Unexpected)?;
    let response = md5::password_response(user, password, salt);
    line.send(secret_message(&response).as_slice()).await?;
    Ok("md5")
}

/// A PasswordMessage whose buffer is wiped.
fn secret_message(secret: &str) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(secret.len().saturating_add(8)));
    out.push(b'p');
    let length = i32::try_from(secret.len().saturating_add(5)).unwrap_or(i32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(secret.as_bytes());
    out.push(0);
    out
}

fn offered(data: &[u8]) -> Result<Vec<&str>, LoginError> {
    let (mut reader, mut names) = (Reader::new(data), Vec::new());
    loop {
        match reader.text()? {
            "" => return Ok(names),
            name => names.push(name),
        }
        if names.len() > 16 {
            return Err(LoginError::Unexpected);
        }
    }
}

fn sasl_initial(mechanism: &str, response: &str) -> Frame {
    write::one(b'p', |out| {
        write::cstr(out, mechanism.as_bytes());
        out.put_i32(i32::try_from(response.len()).unwrap_or(i32::MAX));
        out.put_slice(response.as_bytes());
    })
}

async fn scram_exchange<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line<'_, S>,
    plan: &LoginPlan<'_>,
    done: &mut LoggedIn,
    data: &[u8],
    password: &str,
    off: &impl Off,
) -> Result<&'static str, LoginError> {
    let names = offered(data)?;
    let (plus, plain) = (names.contains(&"SCRAM-SHA-256-PLUS"), names.contains(&"SCRAM-SHA-256"));
    let (mechanism, binding) = match (&plan.binding.end_point, plan.binding.tls) {
        (Some(hash), true) if plus => ("SCRAM-SHA-256-PLUS", ChannelBinding::EndPoint(hash.clone())),
        (Some(_), true) if plain => ("SCRAM-SHA-256", ChannelBinding::NotOffered),
        _ if plain => ("SCRAM-SHA-256", ChannelBinding::Unsupported),
        _ => return Err(LoginError::Mechanism("the server offers no SCRAM mechanism we can use")),
    };
    let (started, first) = scram::start(binding)?;
    line.send(sasl_initial(mechanism, &first).bytes()).await?;
    let challenge = expect(line, plan, done, 11).await?;
    let challenged = started.challenge(utf8(&challenge)?)?;
    let inputs = [challenged.rounds.to_be_bytes().as_slice(), &challenged.salt].concat();
    let salted = match plan.lease.derived(&inputs) {
        Some(salted) => salted,
        None => {
            let (salt, rounds) = (challenged.salt.clone(), challenged.rounds);
            let password = Zeroizing::new(password.to_owned());
            let work = Box::new(move || scram::salt_password(&password, &salt, rounds));
            Arc::new(off.salted(work).await.ok_or(LoginError::Lost)?)
        }
    };
    let (proven, last) = challenged.prove(&salted);
    line.send(write::one(b'p', |out| out.put_slice(last.as_bytes())).bytes())
        .await?;
    let signature = expect(line, plan, done, 12).await?;
    proven.check(utf8(&signature)?)?;
    expect(line, plan, done, 0).await?;
    // Only a password that both sides know is worth keeping.
    plan.lease.keep_derived(inputs, salted);
    Ok(mechanism)
}

async fn expect<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line<'_, S>,
    plan: &LoginPlan<'_>,
    done: &mut LoggedIn,
    wanted: i32,
) -> Result<Bytes, LoginError> {
    match line.request(plan, done).await? {
        (code, data) if code == wanted => Ok(data),
        (0, _) => Err(LoginError::Mechanism(
            "the server ended the exchange without proving itself",
        )),
        _ => Err(LoginError::Mechanism("the server changed its mind in mid-exchange")),
    }
}

fn utf8(data: &[u8]) -> Result<&str, LoginError> {
    std::str::from_utf8(data).map_err(|_| LoginError::Codec(CodecError::Utf8))
}

async fn oauth_exchange<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line<'_, S>,
    plan: &LoginPlan<'_>,
    done: &mut LoggedIn,
    data: &[u8],
    token: &str,
) -> Result<&'static str, LoginError> {
    if !plan.binding.tls {
        return Err(LoginError::Mechanism("a token may only cross verified TLS"));
    }
    if !offered(data)?.contains(&"OAUTHBEARER") {
        return Err(LoginError::Mechanism("the server does not offer OAUTHBEARER"));
    }
    if !oauth::token_is_clean(token) {
        return Err(LoginError::Mechanism("the lease's token has impossible characters"));
    }
    line.send(sasl_initial("OAUTHBEARER", &oauth::initial_response(token)).bytes())
        .await?;
    match line.request(plan, done).await? {
        (0, _) => Ok("OAUTHBEARER"),
        (11, _) => {
            // The server's error document; after our answer it ends the login with an error of its own.
            line.send(write::one(b'p', |out| out.put_slice(oauth::ABORT)).bytes())
                .await?;
            match line.request(plan, done).await {
                Err(error) => Err(error),
                Ok(_) => Err(LoginError::Mechanism("the server refused the token and let us in")),
            }
        }
        (12, data) if data.is_empty() => expect(line, plan, done, 0).await.map(|_| "OAUTHBEARER"),
        _ => Err(LoginError::Unexpected),
    }
}

/// From AuthenticationOk to ReadyForQuery.
async fn settle<S: AsyncRead + AsyncWrite + Unpin>(
    line: &mut Line<'_, S>,
    plan: &LoginPlan<'_>,
    done: &mut LoggedIn,
) -> Result<(), LoginError> {
    loop {
        let frame = line.next().await?;
        let mut reader = frame.reader();
        match frame.tag() {
            b'S' => done
                .reported
                .push((reader.text()?.to_owned(), reader.text()?.to_owned())),
            b'K' => {
                let pid = reader.i32()?;
                let key = frame.payload_bytes().slice_ref(reader.rest());
                if !(4..=256).contains(&key.len()) {
                    return Err(LoginError::Unexpected);
                }
                done.cancel = Some((pid, key));
            }
            b'v' => negotiate(&frame, plan, done)?,
            b'N' => {}
            b'Z' => {
                done.status = reader.u8()?;
                return Ok(());
            }
            b'E' => return Err(refused(&frame, plan)),
            _ => return Err(LoginError::Unexpected),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use bytes::BytesMut;
    use sidegate_policies::wire;

    use super::*;

    struct Here;

    impl Off for Here {
        async fn salted(&self, work: Box<dyn FnOnce() -> Salted + Send>) -> Option<Salted> {
            Some(work())
        }
    }

    fn request(code: i32, data: &[u8]) -> Vec<u8> {
        write::one(b'R', |out| {
            out.put_i32(code);
            out.put_slice(data);
        })
        .bytes()
        .to_vec()
    }

    /// A server that says its lines one after another, each after one message of ours.
    async fn against(
        lines: Vec<Vec<u8>>,
        lease: LeaseHandle,
        weak: WeakLogin,
        tls: bool,
    ) -> (Result<LoggedIn, LoginError>, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let server = async move {
            let (mut heard, mut buffer) = (Vec::new(), BytesMut::new());
            for line in lines {
                buffer.clear();
                if theirs.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                    break;
                }
                heard.extend_from_slice(&buffer);
                if theirs.write_all(&line).await.is_err() {
                    break;
                }
            }
            let mut rest = Vec::new();
            let _ = theirs.shutdown().await;
            let _ = theirs.read_to_end(&mut rest).await;
            heard.extend_from_slice(&rest);
            heard
        };
        let parameters = [("user".to_owned(), "agent".to_owned())];
        let client = async move {
            let plan = LoginPlan {
                parameters: &parameters,
                minor: 2,
                lease: &lease,
                weak,
                binding: Binding {
                    tls,
                    end_point: tls.then(|| vec![1; 32]),
                },
            };
            let mut scanner = ServerScanner::default();
            login(&mut ours, &mut scanner, &plan, &Here).await
        };
        tokio::join!(client, server)
    }

    fn lease(material: wire::LeaseMaterial) -> LeaseHandle {
        let lease = wire::Lease {
            id: "l".into(),
            material,
            expires_in: 600,
        };
        LeaseHandle::new(
            lease,
            tokio::time::Instant::now(),
            jiff::Timestamp::now().as_millisecond(),
        )
        .unwrap()
    }

    fn password() -> LeaseHandle {
        lease(wire::LeaseMaterial::Password {
            user: "agent".into(),
            password: "s3cret-canary".into(),
        })
    }

    fn ready() -> Vec<u8> {
        write::ready(b'I').bytes().to_vec()
    }

    fn leaked(heard: &[u8]) -> bool {
        memchr::memmem::find(heard, b"s3cret-canary").is_some()
    }

    #[tokio::test]
    async fn a_server_that_lets_us_in_without_the_exchange_is_refused() {
        let (result, heard) = against(
            vec![[request(0, b""), ready()].concat()],
            password(),
            WeakLogin::Anywhere,
            true,
        )
        .await;
        assert!(matches!(result, Err(LoginError::Mechanism(_))));
        assert!(!leaked(&heard));
    }

    #[tokio::test]
    async fn cleartext_and_md5_are_refused_unless_the_target_says_so_and_the_line_fits() {
        for (weak, tls, allowed) in [
            (WeakLogin::Refuse, true, false),
            (WeakLogin::InsideTls, false, false),
            (WeakLogin::InsideTls, true, true),
            (WeakLogin::Anywhere, false, true),
        ] {
            for ask in [request(3, b""), request(5, b"salt")] {
                let lines = vec![ask, [request(0, b""), ready()].concat()];
                let (result, heard) = against(lines, password(), weak, tls).await;
                assert_eq!(result.is_ok(), allowed, "{weak:?} {tls}");
                assert!(allowed || !leaked(&heard));
            }
        }
    }

    #[tokio::test]
    async fn a_token_never_crosses_a_line_without_verified_tls() {
        let token = || {
            lease(wire::LeaseMaterial::Bearer {
                user: None,
                token: "s3cret-canary".into(),
            })
        };
        let ask = request(10, b"OAUTHBEARER\0\0");
        let (result, heard) = against(vec![ask.clone()], token(), WeakLogin::Anywhere, false).await;
        assert!(matches!(result, Err(LoginError::Mechanism(_))));
        assert!(!leaked(&heard));
        let (result, heard) = against(
            vec![ask, [request(0, b""), ready()].concat()],
            token(),
            WeakLogin::Refuse,
            true,
        )
        .await;
        assert_eq!(result.unwrap().mechanism, "OAUTHBEARER");
        assert!(leaked(&heard));
    }

    #[tokio::test]
    async fn a_server_without_the_password_or_without_a_signature_is_refused() {
        let lines = |last: Vec<u8>| {
            vec![
                request(10, b"SCRAM-SHA-256\0\0"),
                request(11, b"r=x,s=AAAA,i=4096"),
                last,
            ]
        };
        let (result, _) = against(lines(request(0, b"")), password(), WeakLogin::Anywhere, false).await;
        assert!(matches!(result, Err(LoginError::Scram(ScramError::Nonce))));
    }

    /// A server that speaks SCRAM right up to its last message.
    async fn half_scram(last: impl Fn(&str) -> Vec<u8>) -> Result<LoggedIn, LoginError> {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let server = async move {
            let mut buffer = BytesMut::new();
            theirs.read_buf(&mut buffer).await.ok()?;
            theirs.write_all(&request(10, b"SCRAM-SHA-256\0\0")).await.ok()?;
            buffer.clear();
            theirs.read_buf(&mut buffer).await.ok()?;
            let text = String::from_utf8_lossy(&buffer).into_owned();
            let nonce = text.split("r=").nth(1)?.to_owned();
            let salt = base64::engine::general_purpose::STANDARD.encode([7; 16]);
            theirs
                .write_all(&request(11, format!("r={nonce}srv,s={salt},i=4096").as_bytes()))
                .await
                .ok()?;
            buffer.clear();
            theirs.read_buf(&mut buffer).await.ok()?;
            theirs.write_all(&last(&text)).await.ok()
        };
        let client = async move {
            let lease = password();
            let plan = LoginPlan {
                parameters: &[],
                minor: 0,
                lease: &lease,
                weak: WeakLogin::Refuse,
                binding: Binding::default(),
            };
            login(&mut ours, &mut ServerScanner::default(), &plan, &Here).await
        };
        tokio::join!(client, server).0
    }

    #[tokio::test]
    async fn a_missing_or_wrong_server_signature_ends_the_login() {
        let missing = half_scram(|_| [request(0, b""), ready()].concat()).await;
        assert!(matches!(missing, Err(LoginError::Mechanism(_))));
        let wrong = half_scram(|_| request(12, b"v=AAAA")).await;
        assert!(matches!(wrong, Err(LoginError::Scram(ScramError::Signature))));
    }

    #[tokio::test]
    async fn the_servers_error_text_loses_the_secret() {
        let error = Fields::new("FATAL", "28P01", "bad password s3cret-canary")
            .frame(b'E')
            .bytes()
            .to_vec();
        let (result, _) = against(vec![error], password(), WeakLogin::Refuse, true).await;
        let Err(LoginError::Refused { code, message }) = result else {
            panic!("refused")
        };
        assert_eq!((code.as_str(), message.as_str()), ("28P01", "bad password ***"));
    }
}
