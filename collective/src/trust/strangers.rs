//! Processes that do not belong: each is refused, told why, and named in the job's log with where
//! it came from.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::Credentials;
use super::certificates::{Membership, initial_suite};
use super::hello::{self, Again, Answer, DialError, Hello, Purpose, Stranger};
use super::names::JobNames;
use super::own::OwnCertificates;
use super::secret::{Secret, Secrets};
use super::verifier::Seen;
use crate::link::quic::binding;
use crate::link::quic::endpoint::{self, Caller, OpenEndpoint};
use crate::link::quic::tuning::Traffic;
use crate::statistics::Refusal;
use crate::wire;

#[test]
fn another_secret_is_named_on_both_sides() {
    let (ours, theirs) = (Secret::random().unwrap(), Secret::random().unwrap());
    let [here, there] = [&ours, &theirs].map(|secret| secret.fingerprint());
    let refusal = refused(&of_secrets(&[&ours], 0), &of_secrets(&[&theirs], 1), 1);
    assert_eq!(refusal.told, format!("secret {there} here, {here} on rank 0"));
    refusal.assert_warned(&format!("it has another secret (here: {here})"));
}

#[test]
fn another_job_is_named_on_both_sides() {
    let secret = Secret::random().unwrap();
    let guest = Credentials::Secrets(secrets(&[&secret]));
    let guest = Membership::new(&guest, "other", 1).unwrap();
    let refusal = refused(&of_secrets(&[&secret], 0), &guest, 1);
    assert!(refusal.told.starts_with("another job, under another ALLFOLD_JOB"), "{refusal:?}");
    refusal.assert_warned("it belongs to another job (ALLFOLD_JOB is job here)");
}

#[test]
fn a_process_is_only_the_rank_that_its_certificate_names() {
    let secret = Secret::random().unwrap();
    let refusal = refused(&of_secrets(&[&secret], 0), &of_secrets(&[&secret], 1), 2);
    assert_eq!(refusal.told, "its certificate is not for rank 2");
    refusal.assert_warned("its certificate is not for rank 2");
    // And whoever answers must be the rank that was dialled.
    let refusal = refused(&of_secrets(&[&secret], 3), &of_secrets(&[&secret], 1), 1);
    assert_eq!(refusal.told, "another rank than rank 0 answers there");
    refusal.assert_warned("it awaited another rank or another job here");
}

#[test]
fn secrets_rotate_in_any_order() {
    let (old, new) = (Secret::random().unwrap(), Secret::random().unwrap());
    let files = [vec![&old], vec![&old, &new], vec![&new, &old], vec![&new]];
    for (i, host) in files.iter().enumerate() {
        for (j, guest) in files.iter().enumerate() {
            let meeting = meet(&of_secrets(host, 0), &of_secrets(guest, 1), 1);
            let may = i.abs_diff(j) < 3;
            assert_eq!(meeting.is_ok(), may, "host {i}, guest {j}: {meeting:?}");
        }
    }
    let words =
        refused(&of_secrets(&[&new, &old], 0), &of_secrets(&[&Secret::random().unwrap()], 1), 1);
    let both = format!("(here: {} (and {}))", new.fingerprint(), old.fingerprint());
    words.assert_warned(&both);
}

#[test]
fn another_version_of_the_protocol_is_named_on_both_sides() {
    let secret = Secret::random().unwrap();
    let (host, guest) = (of_secrets(&[&secret], 0), of_secrets(&[&secret], 1));
    let outcome = |protocols: &[&str]| {
        on_runtime(async {
            let (address, host) = open(&host);
            let (_, endpoint) = open(&guest);
            let mut tls = guest.client(0, Seen::default()).unwrap();
            tls.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
            let connecting =
                endpoint.connect_with(config(tls), address, &guest.name_of(0)).unwrap();
            let hello = Hello { version: "9.9.9".into(), ..said_by(1) };
            let dialling = async {
                let shaken = hello::shake(connecting, &guest, Seen::default(), 0).await?;
                hello::introduce(shaken, &guest, 0, &hello).await
            };
            let greeting = greet_one(&host, of_secrets(&[&secret], 0));
            let (told, warned) = tokio::join!(dialling, greeting);
            (told.err().unwrap(), warned.unwrap_err())
        })
    };
    // One that knows the way between versions, and one of before.
    let (told, warned) = outcome(&["allfold/9", "allfold"]);
    let DialError::Refused(told, Again::Never) = told else { panic!("not refused: {told:?}") };
    let ours = env!("CARGO_PKG_VERSION");
    assert_eq!(told, format!("rank 1 runs allfold 9.9.9, rank 0 runs {ours}"));
    assert!(warned.contains(&told) && warned.contains("127.0.0.1:"), "{warned}");
    let (told, warned) = outcome(&["allfold/1"]);
    let DialError::Final(told) = told else { panic!("not refused: {told:?}") };
    assert_eq!(told, "rank 0 runs another version of allfold: it does not speak allfold/3");
    assert!(warned.contains("does not speak allfold/3"), "{warned}");
    assert!(warned.contains("127.0.0.1:"), "{warned}");
}

#[test]
fn of_several_addresses_that_of_the_right_process_is_kept() {
    let secret = Secret::random().unwrap();
    let of_rank = |rank| of_secrets(&[&secret], rank);
    let (right, again, another) = (of_rank(0), of_rank(0), of_rank(1));
    let guest = of_rank(2);
    on_runtime(async {
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let doors = [&another, &again, &right].map(open);
        let [at_another, at_again, at_right] = doors.each_ref().map(|(address, _)| *address);
        for ((_, door), host) in doors.into_iter().zip([another, again, right.clone()]) {
            tokio::task::spawn_local(async move {
                while let Some(incoming) = door.accept().await {
                    let Ok(mut greeted) = hello::greet(incoming, &host).await else { continue };
                    hello::send(&mut greeted.sender, &Answer::Welcome).await.unwrap();
                    // Until the test has ended.
                    std::mem::forget(greeted);
                }
            });
        }
        let (_, endpoint) = open(&guest);
        let caller = Caller { endpoint: &endpoint, membership: &guest, traffic: Traffic::Control };
        let dial = async |leaf, ways: &[SocketAddr]| {
            let outcome = caller.dial_any((0, leaf), ways.to_vec(), &said_by(2), PATIENCE).await;
            outcome.map(|welcomed| welcomed.address())
        };
        // A rank 0 is as good as another, until the world table says which it is.
        assert_eq!(dial(None, &[nobody, at_another, at_again]).await.unwrap(), at_again);
        let leaf = Some(right.leaf_hash());
        let ways = [at_another, at_again, nobody, at_right];
        assert_eq!(dial(leaf, &ways).await.unwrap(), at_right);
        let error = dial(leaf, &[at_again]).await.unwrap_err();
        let expected = format!("another process answers at {at_again}");
        assert!(matches!(&error, DialError::Elsewhere(why) if *why == expected), "{error:?}");
        let error = dial(None, &[at_another]).await.unwrap_err();
        assert_eq!(error.to_string(), "another rank than rank 0 answers there");
    });
}

#[test]
fn who_shows_no_certificate_or_one_of_its_own_making_gets_nowhere() {
    let secret = Secret::random().unwrap();
    let membership = of_secrets(&[&secret], 0);
    for shows in [false, true] {
        let warned = on_runtime(async {
            let (address, host) = open(&membership);
            let (_, endpoint) = open(&membership);
            let connecting =
                endpoint.connect_with(credulous(shows), address, "r0.x.example").unwrap();
            let greeting = greet_one(&host, of_secrets(&[&secret], 0));
            // A TLS 1.3 client believes itself connected before the server has judged it.
            let (_, warned) = tokio::join!(connecting, greeting);
            warned.err().unwrap()
        });
        let why = if shows { "another secret" } else { "showed no certificate" };
        assert!(warned.contains(why) && warned.contains("127.0.0.1:"), "{warned}");
    }
}

#[test]
fn what_is_no_hello_is_refused_with_a_reason() {
    let secret = Secret::random().unwrap();
    let long = (wire::MAX_HELLO_BYTES as u32 + 1).to_le_bytes();
    let huge = u32::MAX.to_le_bytes();
    let cases: [(&[u8], &str); 4] = [
        (&long, "a control message of 16385 bytes"),
        (&huge, "a control message of 4294967295 bytes"),
        (&[3, 0, 0, 0, 1, 2, 3], "cannot be read"),
        (&[0, 0, 0, 0], "cannot be read"),
    ];
    for (bytes, why) in cases {
        let (told, warned) = on_runtime(async {
            let membership = of_secrets(&[&secret], 0);
            let (address, host) = open(&membership);
            let guest = of_secrets(&[&secret], 1);
            let (_, endpoint) = open(&guest);
            let tls = config(guest.client(0, Seen::default()).unwrap());
            let connecting = endpoint.connect_with(tls, address, &guest.name_of(0)).unwrap();
            let says = async {
                let connection = connecting.await.unwrap();
                let (mut sender, mut receiver) = connection.open_bi().await.unwrap();
                sender.write_all(bytes).await.unwrap();
                hello::receive::<Answer>(&mut receiver, wire::MAX_HELLO_BYTES).await
            };
            let (told, warned) = tokio::join!(says, greet_one(&host, membership));
            (told, warned.err().unwrap())
        });
        let Ok(Answer::Refused { reason, again: Again::Never }) = told else {
            panic!("not told: {told:?}")
        };
        assert!(reason.contains(why), "{reason}");
        assert!(warned.contains(why) && warned.contains("127.0.0.1:"), "{warned}");
    }
}

#[test]
fn certificates_of_an_authority_are_good_for_their_rank_and_job() {
    let cluster = Cluster::new();
    for form in [Form::Uri, Form::Dns, Form::Both] {
        let [host, guest] = [0, 1].map(|rank| cluster.rank(rank, "job", form));
        assert!(meet(&host, &guest, 1).is_ok(), "{form:?}");
        let refusal = refused(&host, &guest, 2);
        assert_eq!(refusal.told, "its certificate is not for rank 2");
        let refusal = refused(&cluster.rank(2, "job", form), &guest, 1);
        assert_eq!(refusal.told, "another rank than rank 0 answers there");
    }
    let [host, guest] = [(0, "job"), (1, "other")].map(|(r, j)| cluster.rank(r, j, Form::Uri));
    let refusal = refused(&host, &guest, 1);
    assert!(refusal.told.starts_with("another job"), "{refusal:?}");
    refusal.assert_warned("another job (ALLFOLD_JOB is job here)");
    assert!(host.security().contains("mutual TLS, certificate of CN="), "{}", host.security());
    assert!(host.security().ends_with(", expires in 12 days"), "{}", host.security());
}

#[test]
fn certificates_for_several_jobs_let_no_job_into_another() {
    let cluster = Cluster::new();
    let start = |rank, job| cluster.rank(rank, job, Form::Jobs(&["job", "other"]));
    for job in ["job", "other"] {
        assert!(meet(&start(0, job), &start(1, job), 1).is_ok(), "{job}");
    }
    let refusal = refused(&start(0, "job"), &start(1, "other"), 1);
    assert_eq!(refusal.told, "another job, under another ALLFOLD_JOB (job), answers there");
    refusal.assert_warned("it belongs to another job (ALLFOLD_JOB is job here)");
}

#[test]
fn a_certificate_without_the_rank_s_name_says_which_it_needs() {
    let cluster = Cluster::new();
    let own = cluster.issue(Form::Names(&["trainer-0.example"]), 1, "job", DAYS_12);
    let error = Membership::new(&Credentials::Certificates(Arc::new(own)), "job", 1).err().unwrap();
    let text = error.to_string();
    assert!(
        text.starts_with("ALLFOLD_TLS_CERT=/etc/allfold/cert.pem: is not for rank 1 of job job")
    );
    assert!(text.contains("URI:allfold://job/1 or DNS:r1."), "{text}");
    assert!(text.ends_with("it has trainer-0.example"), "{text}");
}

#[test]
fn a_certificate_that_others_would_refuse_is_an_error_at_the_start() {
    let cluster = Cluster::new();
    let start = |own| Membership::new(&Credentials::Certificates(Arc::new(own)), "job", 1);
    let text = |own| start(own).err().unwrap().to_string();
    let expired = text(cluster.issue(Form::Uri, 1, "job", -3600));
    assert!(
        expired.contains("/etc/allfold/cert.pem") && expired.contains(" expired on 20"),
        "{expired}"
    );
    let mut early = cluster.issue(Form::Uri, 1, "job", DAYS_12);
    early.chain[0] = cluster.leaf(Form::Uri, 1, "job", (3600, 7200)).0;
    assert!(text(early).contains("is not valid before 20"));
    // Signed by an authority that is not among those that are accepted.
    let mut foreign = cluster.issue(Form::Uri, 1, "job", DAYS_12);
    foreign.authorities = Cluster::new().authorities();
    assert!(text(foreign).contains("was not signed by an authority in ALLFOLD_TLS_CA"));
    let mut gap = cluster.issue(Form::Uri, 1, "job", DAYS_12);
    gap.chain.truncate(1);
    assert!(text(gap).contains("a certificate between the two is missing"));
    let mut mixed = cluster.issue(Form::Uri, 1, "job", DAYS_12);
    mixed.key = cluster.issue(Form::Uri, 1, "job", DAYS_12).key;
    assert!(text(mixed).contains("ALLFOLD_TLS_KEY is the key of another certificate"));
    assert!(start(cluster.issue(Form::Uri, 1, "job", 3600)).is_ok(), "an hour is left");
}

#[test]
fn an_expired_certificate_is_named_on_both_sides() {
    let cluster = Cluster::new();
    let fresh = |rank| cluster.rank(rank, "job", Form::Uri);
    let expired = |rank| {
        let own = cluster.issue(Form::Uri, rank, "job", -60);
        Membership::of_certificates(&own, "job", rank, SystemTime::now()).unwrap()
    };
    let refusal = refused(&expired(0), &fresh(1), 1);
    assert!(refusal.told.starts_with("the certificate of rank 0 expired on 20"), "{refusal:?}");
    refusal.assert_warned("takes this rank's certificate for expired");
    let refusal = refused(&fresh(0), &expired(1), 1);
    assert!(refusal.told.starts_with("rank 0 takes this rank's certificate (valid until 20"));
    refusal.assert_warned("its certificate has expired");
}

#[test]
fn one_job_has_one_kind_of_credentials() {
    let (cluster, secret) = (Cluster::new(), Secret::random().unwrap());
    let of_cluster = |rank| cluster.rank(rank, "job", Form::Uri);
    let fingerprint = secret.fingerprint();
    let refusal = refused(&of_cluster(0), &of_secrets(&[&secret], 1), 1);
    assert!(
        refusal.told.starts_with(
            "rank 0 has certificates of its own (ALLFOLD_TLS_CERT), this rank a secret"
        )
    );
    refusal.assert_warned("it has a secret and no certificates");
    let refusal = refused(&of_secrets(&[&secret], 0), &of_cluster(1), 1);
    assert!(refusal.told.starts_with(&format!("rank 0 has a secret ({fingerprint}), this rank")));
    refusal.assert_warned("or certificates of its own");
    let refusal = refused(&of_cluster(0), &Cluster::new().rank(1, "job", Form::Uri), 1);
    assert!(refusal.told.contains("not signed by an authority in ALLFOLD_TLS_CA (its issuer: CN="));
    refusal.assert_warned("it does not know the authority of this rank's certificate");
}

/// A refusal, as both sides hear of it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) told: String,
    pub(super) warned: String,
}

impl Refused {
    pub(super) fn assert_warned(&self, words: &str) {
        assert!(self.warned.contains(words), "no `{words}` in {self:#?}");
        assert!(self.warned.starts_with("refused a process at 127.0.0.1:"), "{self:#?}");
    }
}

pub(super) fn refused(host: &Membership, guest: &Membership, claims: u32) -> Refused {
    meet(host, guest, claims).expect_err("let in")
}

/// `guest` dials `host`, which should be rank 0, and says that it is rank `claims`.
pub(super) fn meet(host: &Membership, guest: &Membership, claims: u32) -> Result<(), Refused> {
    on_runtime(async {
        let (address, door) = open(host);
        let (_, endpoint) = open(guest);
        let caller = Caller { endpoint: &endpoint, membership: guest, traffic: Traffic::Control };
        let hello = said_by(claims);
        let dialling = caller.dial(0, address, &hello, PATIENCE);
        let greeting = async {
            let incoming = door.accept().await.unwrap();
            let mut greeted = hello::greet(incoming, host).await.map_err(|s| s.problem.unwrap())?;
            hello::send(&mut greeted.sender, &Answer::Welcome).await.unwrap();
            Ok(greeted)
        };
        match tokio::join!(dialling, greeting) {
            (Ok(welcomed), Ok(greeted)) => {
                assert_eq!(welcomed.leaf, host.leaf_hash());
                assert_eq!(greeted.leaf, guest.leaf_hash());
                Ok(())
            }
            (Err(DialError::Final(told) | DialError::Refused(told, Again::Never)), Err(warned)) => {
                Err(Refused { told, warned })
            }
            (dialled, greeted) => panic!("{:?} and {:?}", dialled.err(), greeted.err()),
        }
    })
}

async fn greet_one(door: &OpenEndpoint, membership: Membership) -> Result<(), String> {
    let incoming = door.accept().await.unwrap();
    match hello::greet(incoming, &membership).await {
        Ok(_) => Ok(()),
        Err(Stranger { refusal, problem }) => {
            assert!(matches!(refusal, Refusal::Untrusted | Refusal::NoHello));
            Err(problem.unwrap())
        }
    }
}

pub(super) fn open(membership: &Membership) -> (SocketAddr, OpenEndpoint) {
    let socket = binding::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (address, endpoint::open(socket, membership, Traffic::Control).unwrap())
}

pub(super) fn said_by(rank: u32) -> Hello {
    Hello {
        version: "0.1.0".into(),
        rank,
        incarnation: 1,
        host: "host".into(),
        pid: 1,
        habitat: 0,
        purpose: Purpose::Watch { epoch: 1 },
    }
}

pub(super) fn on_runtime<T>(main: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let main = async { tokio::time::timeout(PATIENCE, main).await };
    tokio::task::LocalSet::new().block_on(&runtime, main).expect("no end")
}

fn secrets(all: &[&Secret]) -> Secrets {
    let lines: Vec<_> = all.iter().map(|secret| secret.to_line().to_string()).collect();
    Secrets::from_lines(&lines.join("\n"), "the test").unwrap()
}

pub(super) fn of_secrets(all: &[&Secret], rank: u32) -> Membership {
    Membership::new(&Credentials::Secrets(secrets(all)), "job", rank).unwrap()
}

pub(super) fn config(tls: rustls::ClientConfig) -> ClientConfig {
    let suite = initial_suite().unwrap();
    ClientConfig::new(Arc::new(QuicClientConfig::with_initial(Arc::new(tls), suite).unwrap()))
}

/// TLS that accepts whoever answers, with no certificate or one that the process signed itself.
fn credulous(shows: bool) -> ClientConfig {
    let secret = Secret::random().unwrap();
    let own = of_secrets(&[&secret], 1);
    let mut tls = own.client(0, Seen::default()).unwrap();
    tls.dangerous().set_certificate_verifier(Arc::new(Credulous));
    if !shows {
        tls.client_auth_cert_resolver = Arc::new(Nothing);
    }
    config(tls)
}

#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

/// A cluster's authority, with one between it and the leaves.
pub(super) struct Cluster {
    root: CertificateDer<'static>,
    between: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Uri,
    Dns,
    /// And names that are none of allfold's.
    Both,
    Names(&'static [&'static str]),
    /// For several jobs.
    Jobs(&'static [&'static str]),
}

impl Cluster {
    pub(super) fn new() -> Self {
        let authority = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            (params, KeyPair::generate().unwrap())
        };
        let (params, key) = authority("cluster");
        let root = params.self_signed(&key).unwrap().der().clone();
        let root_issuer = Issuer::new(params, key);
        let (params, key) = authority("cluster, training");
        let between = params.signed_by(&key, &root_issuer).unwrap().der().clone();
        Self { root, between, issuer: Issuer::new(params, key) }
    }

    fn authorities(&self) -> Vec<CertificateDer<'static>> {
        vec![self.root.clone()]
    }

    pub(super) fn rank(&self, rank: u32, job: &str, form: Form) -> Membership {
        let own = self.issue(form, rank, job, DAYS_12);
        Membership::new(&Credentials::Certificates(Arc::new(own)), job, rank).unwrap()
    }

    /// A certificate that expires in so many seconds.
    pub(super) fn issue(&self, form: Form, rank: u32, job: &str, expires: i64) -> OwnCertificates {
        let (leaf, key) = self.leaf(form, rank, job, (-7200, expires));
        OwnCertificates {
            chain: vec![leaf, self.between.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            authorities: self.authorities(),
            place: "/etc/allfold/cert.pem".into(),
        }
    }

    /// Valid between two times, in seconds from now.
    fn leaf(
        &self,
        form: Form,
        rank: u32,
        job: &str,
        (from, to): (i64, i64),
    ) -> (CertificateDer<'static>, KeyPair) {
        let names = JobNames::new(job);
        let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
        let uri_of = |names: JobNames| SanType::URI(names.uri(rank).try_into().unwrap());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = match form {
            Form::Uri => vec![uri_of(names)],
            Form::Dns => vec![dns(&names.dns(rank))],
            Form::Both => {
                let of_rank = dns(&names.dns(rank));
                vec![dns("trainer-0.example"), uri_of(names), of_rank]
            }
            Form::Names(all) => all.iter().map(|name| dns(name)).collect(),
            Form::Jobs(all) => all.iter().map(|job| uri_of(JobNames::new(job))).collect(),
        };
        let now = x509_parser::time::ASN1Time::now().to_datetime();
        params.not_before = now;
        params.not_before += Duration::from_secs(from.max(0).cast_unsigned());
        params.not_before -= Duration::from_secs((-from).max(0).cast_unsigned());
        params.not_after = now;
        params.not_after += Duration::from_secs(to.max(0).cast_unsigned());
        params.not_after -= Duration::from_secs((-to).max(0).cast_unsigned());
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key)
    }
}

/// And an hour, so that a moment later it is still so long.
const DAYS_12: i64 = 12 * 86_400 + 3_600;
/// No test waits longer.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
