//! One certificate: the account, the order, the proof that the name is ours, the request.

use super::challenge::{alpn_certificate, request};
use super::folder::{AcmeFolder, LaidToken, OrderTurn};
use super::pair;
use super::web::{told, AcmeWeb, OrderFault};
use crate::config::plan::{AccountBinding, Acme, AcmeChallenge};
use crate::state::certificates::{GivenCertificates, ServedCertificate};
use crate::store::web::WebClient;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use instant_acme::{
    Account, AccountCredentials, AuthorizationHandle, AuthorizationStatus, ChallengeType,
    ExternalAccountKey, Identifier, KeyAuthorization, NewAccount, NewOrder, Order, OrderStatus,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A call of the authority's server may take so long.
const CALL_TIME: Duration = Duration::from_secs(30);
/// Bytes of an answer of its that are taken. Chains have a few thousand.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// All of an order may take so long. Beyond: it failed, and others have their turn.
const ORDER_TIME: Duration = Duration::from_secs(5 * 60);
/// So long it is waited between two looks at an order.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(250);
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Names of one order that are proved; we ask for one.
const PROOFS_MAX: usize = 4;

/// The account, as it lies on the disk.
#[derive(Serialize, Deserialize)]
struct KeptAccount {
    /// Whom the authority writes to; empty: nobody.
    email: String,
    credentials: AccountCredentials,
}

/// What an order needs.
pub struct OrderDesk<'a> {
    /// How it is configured.
    pub acme: &'a Acme,
    /// Where things are kept.
    pub folder: &'a AcmeFolder,
    /// The right to order.
    pub turn: &'a OrderTurn,
    /// Where certificates are shown.
    pub given: &'a Arc<GivenCertificates>,
    /// The way to the authority.
    pub web: &'a AcmeWeb,
    /// Ends when the process does.
    pub running: &'a Receiver<()>,
}

/// What lies there for the authority while it looks.
enum Proof {
    Token(#[allow(dead_code, reason = "it lies there until this goes away")] LaidToken),
    Shown(#[allow(dead_code, reason = "it is shown until this goes away")] ShownChallenge),
}

/// A certificate that the authority is shown, and it alone.
struct ShownChallenge {
    given: Arc<GivenCertificates>,
    name: String,
}

impl Drop for ShownChallenge {
    fn drop(&mut self) {
        self.given.end_challenge(&self.name);
    }
}

/// A client of the authority's.
///
/// # Errors
/// `ca_file` cannot be used, with its name.
pub fn web_of(acme: &Acme) -> Result<AcmeWeb, String> {
    let client = WebClient::new(acme.ca_file.as_deref(), CALL_TIME, ANSWER_BYTES_MAX);
    client.map(AcmeWeb::new).map_err(|error| format!("server.tls.acme.ca_file: {error}"))
}

impl OrderDesk<'_> {
    /// Gets a certificate for a name and puts it on the disk. `tries` before this one failed.
    /// Blocks for minutes at most.
    ///
    /// # Errors
    /// Why there is none.
    pub fn order(&self, name: &str, tries: u32) -> Result<Arc<ServedCertificate>, OrderFault> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| OrderFault::Internal(error.to_string()))?;
        runtime.block_on(async {
            match self.order_by_account(name, tries).await {
                // It was made anew there, or never was: one more try with a new account.
                Err(OrderFault::NoAccount(why)) => {
                    tracing::warn!(why = %told(&why), "acme: the account is made anew");
                    self.folder.drop_account(self.turn).map_err(OrderFault::Internal)?;
                    self.order_by_account(name, tries).await
                }
                result => result,
            }
        })
    }

    async fn order_by_account(
        &self,
        name: &str,
        tries: u32,
    ) -> Result<Arc<ServedCertificate>, OrderFault> {
        // A new address of whom it writes to is told first: that, too, may find no account.
        let account = self.account().await?;
        self.order_by(&account, name, tries).await
    }

    /// The account of the disk, or a new one.
    async fn account(&self) -> Result<Account, OrderFault> {
        let builder = Account::builder_with_http(Box::new(self.web.clone()));
        let email = self.acme.email.clone().unwrap_or_default();
        let contact = format!("mailto:{email}");
        let contacts: Vec<&str> = (!email.is_empty()).then_some(&*contact).into_iter().collect();
        let kept = self.folder.account().map_err(OrderFault::Internal)?;
        if let Some(text) = kept {
            let kept: KeptAccount = serde_json::from_str(&text)
                .map_err(|error| OrderFault::Internal(format!("account.json: {error}")))?;
            let account = builder.from_credentials(kept.credentials).await?;
            if kept.email != email {
                account.update_contacts(&contacts).await?;
                // Read anew: the library gives credentials away, and no copies.
                let mut kept: KeptAccount = serde_json::from_str(&text)
                    .map_err(|error| OrderFault::Internal(format!("account.json: {error}")))?;
                kept.email = email;
                self.keep(&kept)?;
            }
            return Ok(account);
        }
        let wanted = NewAccount {
            contact: &contacts,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let bound_to = self.acme.eab.as_ref().map(|AccountBinding { kid, hmac_key }| {
            let key = AccountBinding::decoded(hmac_key).unwrap_or_default();
            ExternalAccountKey::new(kid.clone(), &key)
        });
        let directory = self.acme.directory.clone();
        let (account, credentials) = builder.create(&wanted, directory, bound_to.as_ref()).await?;
        self.keep(&KeptAccount { email, credentials })?;
        tracing::info!(directory = %self.acme.directory, "acme: a new account");
        Ok(account)
    }

    fn keep(&self, account: &KeptAccount) -> Result<(), OrderFault> {
        let text = serde_json::to_string(account);
        let text = text.map_err(|error| OrderFault::Internal(error.to_string()))?;
        self.folder.put_account(&text, self.turn).map_err(OrderFault::Internal)
    }

    async fn order_by(
        &self,
        account: &Account,
        name: &str,
        tries: u32,
    ) -> Result<Arc<ServedCertificate>, OrderFault> {
        let due = Instant::now() + ORDER_TIME;
        let names = [Identifier::Dns(name.to_owned())];
        let mut order = account.new_order(&NewOrder::new(&names)).await?;
        let proofs = self.prove(&mut order, name, tries).await?;
        let is_proved = |status| !matches!(status, OrderStatus::Pending);
        let status = self.await_status(&mut order, due, is_proved).await?;
        drop(proofs);
        if status == OrderStatus::Invalid {
            return Err(OrderFault::Refused(why_invalid(&mut order).await));
        }
        let (key, csr) = request(name).map_err(OrderFault::Internal)?;
        if status == OrderStatus::Ready {
            order.finalize_csr(&csr).await?;
        }
        let is_done = |status| matches!(status, OrderStatus::Valid | OrderStatus::Invalid);
        self.await_status(&mut order, due, is_done).await?;
        let chain = order.certificate().await?;
        let chain = chain.ok_or_else(|| OrderFault::Refused("it gave no certificate".into()))?;
        let text = pair::text(&key, &chain);
        let pair = pair::read(name, &text)
            .map_err(|why| OrderFault::Refused(format!("its certificate is no use: {why}")))?;
        self.folder.put_certificate(name, &text, self.turn).map_err(OrderFault::Internal)?;
        Ok(pair)
    }

    /// Lays down what the authority asks for, and says that it is there.
    async fn prove(
        &self,
        order: &mut Order,
        name: &str,
        tries: u32,
    ) -> Result<Vec<Proof>, OrderFault> {
        let mut proofs = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending if proofs.len() < PROOFS_MAX => {}
                status => {
                    let why = format!("its authorization is {status:?}").to_lowercase();
                    return Err(OrderFault::Refused(why));
                }
            }
            let kind = self.kind_for(&authorization, tries)?;
            tracing::debug!(name, ?kind, "acme: a challenge");
            let challenge = authorization.challenge(kind.clone());
            let mut challenge =
                challenge.ok_or_else(|| OrderFault::Refused("it has no challenge".into()))?;
            let answer = challenge.key_authorization();
            proofs.push(self.lay(name, &kind, &challenge.token, &answer)?);
            challenge.set_ready().await?;
        }
        Ok(proofs)
    }

    fn lay(
        &self,
        name: &str,
        kind: &ChallengeType,
        token: &str,
        answer: &KeyAuthorization,
    ) -> Result<Proof, OrderFault> {
        if *kind == ChallengeType::Http01 {
            let laid = self.folder.lay_token(token, answer.as_str(), self.turn);
            return laid.map(Proof::Token).map_err(OrderFault::Internal);
        }
        let digest = answer.digest();
        let certificate = alpn_certificate(name, digest.as_ref()).map_err(OrderFault::Internal)?;
        self.given.put_challenge(name, &certificate);
        Ok(Proof::Shown(ShownChallenge { given: Arc::clone(self.given), name: name.to_owned() }))
    }

    /// The first of the challenges that we can answer and that are offered. What failed last time
    /// is last, where there is a choice.
    fn kind_for(
        &self,
        authorization: &AuthorizationHandle<'_>,
        tries: u32,
    ) -> Result<ChallengeType, OrderFault> {
        let mut ours = match self.acme.challenge {
            AcmeChallenge::Http01 => vec![ChallengeType::Http01],
            AcmeChallenge::TlsAlpn01 => vec![ChallengeType::TlsAlpn01],
            AcmeChallenge::Auto if self.acme.http_listen.is_none() => {
                vec![ChallengeType::TlsAlpn01]
            }
            AcmeChallenge::Auto => vec![ChallengeType::Http01, ChallengeType::TlsAlpn01],
        };
        if tries % 2 == 1 {
            ours.reverse();
        }
        let offered = &authorization.challenges;
        ours.into_iter().find(|kind| offered.iter().any(|one| one.r#type == *kind)).ok_or_else(
            || {
                let kinds: Vec<String> =
                    offered.iter().map(|one| format!("{:?}", one.r#type)).collect();
                let offered = kinds.join(", ");
                OrderFault::Refused(format!("it offers none of our challenges, but {offered}"))
            },
        )
    }

    /// Looks at an order until it is in such a state.
    async fn await_status(
        &self,
        order: &mut Order,
        due: Instant,
        is_it: impl Fn(OrderStatus) -> bool,
    ) -> Result<OrderStatus, OrderFault> {
        let mut pause = LOOK_PAUSE_MIN;
        loop {
            let status = order.state().status;
            if is_it(status) {
                return Ok(status);
            }
            let asked = self.web.retry_after().unwrap_or_default().min(LOOK_PAUSE_MAX);
            let wait = pause.max(asked);
            pause = (pause * 2).min(LOOK_PAUSE_MAX);
            if Instant::now() + wait > due {
                let minutes = ORDER_TIME.as_secs() / 60;
                let why = format!("the order is still {status:?} after {minutes} minutes");
                return Err(OrderFault::Refused(why.to_lowercase()));
            }
            if self.running.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
                return Err(OrderFault::Internal("the process ends".into()));
            }
            order.refresh().await?;
        }
    }
}

/// What the authority found when it looked.
async fn why_invalid(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        // Asked for anew: what we know of it is from before it looked.
        let Ok(state) = authorization.refresh().await else { continue };
        let error = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        if let Some(error) = error {
            let words = error.to_string();
            return words.strip_prefix("API error: ").unwrap_or(&words).to_owned();
        }
    }
    match &order.state().error {
        Some(error) => error.to_string(),
        None => "the order is invalid".to_owned(),
    }
}
