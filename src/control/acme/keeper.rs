//! The thread that sees to it that each name has a certificate: it takes up what lies on the disk,
//! its own and what other instances put there, and orders when it is time to.

use super::advice;
use super::folder::{AcmeFolder, FileMark};
use super::http::{self, PlainDoor};
use super::numbers::{AcmeNumbers, OrderEnd};
use super::order::{web_of, OrderDesk};
use super::pair::{self, CertificateLife};
use super::pause::{renewal_ms, Failures, Jitter, Setback};
use super::web::{told, OrderFault};
use crate::base::clock::unix_ms;
use crate::base::utc::Stamp;
use crate::config::plan::{AccountBinding, Acme};
use crate::state::board::View;
use crate::state::certificates::{GivenCertificates, ServedCertificate};
use crate::state::stop::{Phase, Stop};
use crossbeam_channel::{bounded, Receiver, RecvTimeoutError, Sender};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// It is looked what others put on the disk, so often at least, or more often where certificates
/// live shortly: so many times within a life.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(60);
const LOOK_PAUSE_MIN: Duration = Duration::from_secs(1);
const LOOKS_PER_LIFE: u64 = 60;
/// After a panic, so that its report does not fill the log.
const PANIC_PAUSE: Duration = Duration::from_secs(10);

/// The threads, running. The one that orders ends with this; an order that it is at is given up.
pub struct AcmeRun {
    _running: Sender<()>,
    numbers: Arc<AcmeNumbers>,
}

impl AcmeRun {
    /// What became of orders, and will.
    pub fn numbers(&self) -> Arc<AcmeNumbers> {
        Arc::clone(&self.numbers)
    }
}

/// Takes up what lies on the disk, and starts the threads, where the plan of this view says so.
/// What is there is shown before this returns. `plain`: the listener for those who come without
/// TLS.
///
/// # Errors
/// The folder cannot be used, or a thread cannot start: a line for a person.
pub fn start(
    view: &View,
    stop: &Arc<Stop>,
    plain: Option<OwnedFd>,
) -> Result<Option<AcmeRun>, String> {
    let Some(acme) = view.plan.server.tls.as_ref().and_then(|tls| tls.acme.as_ref()) else {
        return Ok(None);
    };
    let folder = AcmeFolder::of(&acme.storage, &acme.directory);
    folder.make().map_err(|error| format!("server.tls.acme.storage: {error}"))?;
    // Wrong at the start is wrong for ever: not to be found out by the first order.
    try_out(acme)?;
    if let Some(listener) = plain {
        let door = PlainDoor { folder: folder.clone(), names: acme.domains.clone() };
        http::start(listener, door, Arc::clone(stop))
            .map_err(|error| format!("a thread cannot start: {error}"))?;
    }
    let names = acme.domains.iter().map(|name| KeptName::new(name)).collect();
    let (acme, given) = (acme.clone(), Arc::clone(&view.given_certificates));
    let (numbers, stop) = (Arc::<AcmeNumbers>::default(), Arc::clone(stop));
    let shown = Arc::clone(&numbers);
    let mut keeper = Keeper { acme, folder, given, numbers, stop, names, no_advice_until_ms: 0 };
    keeper.take_all();
    for name in keeper.names.iter().filter(|name| name.lifetime.is_none()) {
        let name = &name.name;
        tracing::warn!(name, "acme: no certificate yet: handshakes for it fail until there is one");
    }
    let (until_end, running) = bounded::<()>(0);
    let body = move || {
        let mut pause = Duration::ZERO;
        while running.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            pause = PANIC_PAUSE;
            crate::control::survive("acme", || pause = keeper.turn(&running));
        }
    };
    std::thread::Builder::new()
        .name("acme".into())
        .spawn(body)
        .map_err(|error| format!("a thread cannot start: {error}"))?;
    Ok(Some(AcmeRun { _running: until_end, numbers: shown }))
}

/// Whether a start would find what it needs. Makes nothing, and asks nobody.
///
/// # Errors
/// It would not: a line that names the key.
pub fn look(acme: &Acme) -> Result<(), String> {
    let folder = AcmeFolder::of(&acme.storage, &acme.directory);
    folder.look().map_err(|error| format!("server.tls.acme.storage: {error}"))?;
    try_out(acme)
}

/// Whether an order could be begun with what is configured.
fn try_out(acme: &Acme) -> Result<(), String> {
    web_of(acme)?;
    let is_key = |binding: &AccountBinding| AccountBinding::decoded(&binding.hmac_key).is_some();
    match acme.eab.as_ref().is_none_or(is_key) {
        true => Ok(()),
        // Not quoted: it is a secret.
        false => {
            Err("server.tls.acme.eab.hmac_key: must be the key as the authority shows it, in \
                      base64url"
                .into())
        }
    }
}

/// A name, and what is known of its certificate.
struct KeptName {
    name: String,
    /// The file that was looked at last.
    mark: Option<FileMark>,
    /// How long the certificate in use lives.
    lifetime: Option<CertificateLife>,
    renewal_ms: u64,
    /// When the authority is asked next whether it wants it sooner.
    advice_ms: u64,
    /// The certificate in use.
    shown: Option<Arc<ServedCertificate>>,
    /// What failed, where the disk did not take it: a full one must not let us ask without a pause.
    unwritten: Option<Failures>,
}

impl KeptName {
    fn new(name: &str) -> KeptName {
        let name = name.to_owned();
        let (lifetime, shown) = (None, None);
        KeptName { name, mark: None, lifetime, renewal_ms: 0, advice_ms: 0, shown, unwritten: None }
    }

    fn failures(&self, folder: &AcmeFolder) -> Failures {
        self.unwritten.clone().unwrap_or_else(|| folder.failures(&self.name))
    }
}

struct Keeper {
    acme: Acme,
    folder: AcmeFolder,
    given: Arc<GivenCertificates>,
    numbers: Arc<AcmeNumbers>,
    stop: Arc<Stop>,
    names: Vec<KeptName>,
    /// It could not be asked: not for any of them before.
    no_advice_until_ms: u64,
}

impl Keeper {
    /// Does what is to be done now. Gives how long there is nothing, then.
    fn turn(&mut self, running: &Receiver<()>) -> Duration {
        self.take_all();
        for at in 0..self.names.len() {
            if self.stop.phase() == Phase::Running && self.is_due(at, unix_ms()) {
                self.order(at, running);
            }
        }
        self.hear_advice();
        for name in &self.names {
            // Of the disk: another instance may have ordered.
            self.numbers.set_failed(&name.name, name.failures(&self.folder).count);
        }
        let now_ms = unix_ms();
        let next_ms = (0..self.names.len()).map(|at| self.next_ms(at)).min().unwrap_or(u64::MAX);
        let next_ms = next_ms.min(self.next_advice_ms().map_or(u64::MAX, |(next_ms, _)| next_ms));
        let wait = Duration::from_millis(next_ms.saturating_sub(now_ms));
        let shortest =
            self.names.iter().filter_map(|name| name.lifetime).map(CertificateLife::seconds);
        let look = shortest.min().map(|life| Duration::from_secs(life / LOOKS_PER_LIFE));
        let look = look.map_or(LOOK_PAUSE_MAX, |look| look.min(LOOK_PAUSE_MAX));
        // Who is due and had no turn waits as well: somebody else orders.
        wait.min(look).max(LOOK_PAUSE_MIN)
    }

    fn take_all(&mut self) {
        (0..self.names.len()).for_each(|at| self.take_up(at));
    }

    /// Takes up what lies on the disk for a name, if that is another file than before.
    fn take_up(&mut self, at: usize) {
        let Some(kept) = self.names.get_mut(at) else { return };
        let mark = self.folder.mark(&kept.name);
        if mark == kept.mark || mark.is_none() {
            return;
        }
        kept.mark = mark;
        let name = kept.name.clone();
        let found = self.folder.certificate(&name);
        let pair = found.and_then(|text| pair::read(&name, &text.unwrap_or_default()));
        match pair {
            Ok(pair) => self.show(at, &pair),
            // What is in use stays, if there is one.
            Err(error) => {
                let path = self.folder.certificate_path(&name);
                let path = path.display();
                tracing::error!(%path, %error, "acme: a certificate of the disk is not used");
            }
        }
    }

    fn show(&mut self, at: usize, pair: &Arc<ServedCertificate>) {
        let Some(kept) = self.names.get_mut(at) else { return };
        self.given.put(pair);
        let lifetime = CertificateLife::of(pair);
        kept.lifetime = Some(lifetime);
        kept.renewal_ms = renewal_ms(lifetime, Jitter::random());
        let first_advice = advice::pause_of(lifetime).as_millis() as u64;
        kept.advice_ms = lifetime.from_s.saturating_mul(1000) + first_advice;
        kept.shown = Some(Arc::clone(pair));
        let (name, until) = (&kept.name, time(lifetime.until_s.saturating_mul(1000)));
        let renewal = time(kept.renewal_ms);
        tracing::info!(name, %until, %renewal, "acme: a certificate is in use");
        self.numbers.set_next(&kept.name, kept.renewal_ms);
    }

    /// When the authority is asked next whether it wants a certificate sooner, and which.
    fn next_advice_ms(&self) -> Option<(u64, usize)> {
        let ours = self.names.iter().enumerate().filter(|(_, kept)| kept.shown.is_some());
        let (next_ms, at) = ours.map(|(at, kept)| (kept.advice_ms, at)).min()?;
        Some((next_ms.max(self.no_advice_until_ms), at))
    }

    /// Asks whether it wants one sooner, if it is time to: of one at a time, since an authority
    /// that says nothing must not hold up an order.
    fn hear_advice(&mut self) {
        let now_ms = unix_ms();
        let Some((next_ms, at)) = self.next_advice_ms() else { return };
        if next_ms > now_ms || self.stop.phase() != Phase::Running {
            return;
        }
        let Some(kept) = self.names.get_mut(at) else { return };
        let Some(shown) = kept.shown.as_ref().and_then(|pair| pair.key.cert.first()) else {
            return;
        };
        let web = web_of(&self.acme);
        let said =
            web.and_then(|web| advice::ask(&web, &self.acme.directory, shown, Jitter::random()));
        let often = kept.lifetime.map_or(advice::ADVICE_PAUSE_MAX, advice::pause_of);
        let name = &kept.name;
        let advice = match said {
            Ok(Some(advice)) => advice,
            Ok(None) => return kept.advice_ms = now_ms + often.as_millis() as u64,
            Err(why) => {
                let why = told(&why);
                tracing::debug!(name, %why, "acme: the authority does not say when to renew");
                self.no_advice_until_ms = now_ms + often.as_millis() as u64;
                return;
            }
        };
        kept.advice_ms = now_ms + advice.pause.min(often).as_millis() as u64;
        if advice.renewal_ms < kept.renewal_ms {
            kept.renewal_ms = advice.renewal_ms;
            let (renewal, why) = (time(advice.renewal_ms), advice.explanation.unwrap_or_default());
            let why = told(&why);
            tracing::info!(name, %renewal, %why, "acme: the authority asks for an earlier renewal");
            self.numbers.set_next(name, advice.renewal_ms);
        }
    }

    /// When a name is to be asked for, or may be.
    fn next_ms(&self, at: usize) -> u64 {
        let Some(kept) = self.names.get(at) else { return u64::MAX };
        let failures = kept.failures(&self.folder);
        let renewal_ms = if kept.lifetime.is_some() { kept.renewal_ms } else { 0 };
        match failures.count > 0 && !failures.allow(unix_ms()) {
            true => renewal_ms.max(failures.until_ms),
            false => renewal_ms,
        }
    }

    fn is_due(&self, at: usize, now_ms: u64) -> bool {
        self.next_ms(at) <= now_ms
    }

    /// Orders for a name, unless another instance is at it, or has just been.
    fn order(&mut self, at: usize, running: &Receiver<()>) {
        let Some(name) = self.names.get(at).map(|kept| kept.name.clone()) else { return };
        let turn = match self.folder.take_turn() {
            Ok(Some(turn)) => turn,
            Ok(None) => return tracing::debug!(name, "acme: another instance orders"),
            Err(error) => return self.note_failure(at, &OrderFault::Internal(error), None),
        };
        self.take_up(at);
        if !self.is_due(at, unix_ms()) {
            return;
        }
        // A certificate that cannot be kept is one less of those that an authority gives in a week.
        let web = match self.folder.probe().and_then(|()| web_of(&self.acme)) {
            Ok(web) => web,
            Err(error) => return self.note_failure(at, &OrderFault::Internal(error), None),
        };
        let tries = self.names.get(at).map_or(0, |kept| kept.failures(&self.folder).count);
        tracing::info!(name, directory = %self.acme.directory, tries, "acme: ordering");
        let (acme, folder, given) = (&self.acme, &self.folder, &self.given);
        let desk = OrderDesk { acme, folder, turn: &turn, given, web: &web, running };
        let ordered = desk.order(&name, tries);
        match ordered {
            Ok(pair) => {
                self.numbers.note(OrderEnd::Issued);
                if let Err(error) = self.folder.put_failures(&name, &Failures::default()) {
                    tracing::warn!(%error, "acme: what failed before stays on the disk");
                }
                if let Some(kept) = self.names.get_mut(at) {
                    kept.mark = self.folder.mark(&name);
                    kept.unwritten = None;
                }
                self.show(at, &pair);
            }
            // It ends in the middle: neither its fault nor ours.
            Err(_) if running.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected) => {}
            Err(fault) => self.note_failure(at, &fault, Some(fault.setback(&web))),
        }
    }

    fn note_failure(&mut self, at: usize, fault: &OrderFault, setback: Option<Setback>) {
        let Some(kept) = self.names.get_mut(at) else { return };
        self.numbers.note(match fault {
            OrderFault::Unreached(_) => OrderEnd::Unreached,
            OrderFault::RateLimited(_) => OrderEnd::RateLimited,
            OrderFault::Internal(_) => OrderEnd::Internal,
            OrderFault::Refused(_) | OrderFault::NoAccount(_) => OrderEnd::Refused,
        });
        let mut failures = kept.failures(&self.folder);
        let setback = setback.unwrap_or(Setback::Unreached);
        failures.why = fault.told();
        let pause = failures.add(setback, kept.lifetime, (unix_ms(), Jitter::random()));
        let (name, why) = (&kept.name, &failures.why);
        let (again_in_s, in_use) = (pause.as_secs(), kept.lifetime.is_some());
        tracing::error!(name, %why, again_in_s, in_use, "acme: no certificate");
        self.numbers.set_next(name, failures.until_ms);
        let put = self.folder.put_failures(name, &failures);
        if let Err(error) = &put {
            tracing::error!(error = %told(error), "acme: that it failed is not on the disk");
        }
        kept.unwritten = put.is_err().then_some(failures);
    }
}

fn time(ms: u64) -> String {
    Stamp::of(ms).map_or_else(|| "never".to_owned(), |stamp| stamp.as_str().to_owned())
}
