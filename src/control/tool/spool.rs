//! `llmproxy spool`: what waits on the disk, and what is to be delivered again.

use crate::config::cli::{SpoolSpan, SpoolTask, Start};
use crate::config::plan::{OnSpoolFailure, RecordFormat, Spool};
use crate::usage::record::UsageRecord;
use crate::usage::spool::checkpoint::Checkpoint;
use crate::usage::spool::disk::{Disk, RealDisk};
use crate::usage::spool::replay::SUFFIX;
use crate::usage::spool::survey::{survey, Survey};
use crate::usage::spool::{dead_letter, open, Options};
use places::{places, AllSurvey, FolderSurvey, SpoolPlace};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

mod live;
mod places;

/// Lines that cannot be read are named up to this number, then counted.
const KEPT_NAMED_MAX: usize = 20;

/// Does it, and writes what there is to say.
///
/// # Errors
/// A folder cannot be read, or something cannot be done; a line for a person.
pub fn run(dir: &Path, task: &SpoolTask, out: &mut dyn Write) -> io::Result<()> {
    let places = places(dir)?;
    match task {
        SpoolTask::Inspect { json } => {
            let found = AllSurvey::of(survey_all(&places, &mut |_, _| Ok(()))?);
            if *json {
                serde_json::to_writer_pretty(&mut *out, &found)?;
                return writeln!(out);
            }
            print(&found, out)
        }
        SpoolTask::Export(span) => {
            let is_by_sequence = matches!(span.from, Some(Start::Sequence(_))) || span.to.is_some();
            names_one(&places, is_by_sequence)?;
            export(&places, *span, out)
        }
        SpoolTask::Replay { reporter, from } => {
            names_one(&places, matches!(from, Some(Start::Sequence(_))))?;
            replay(&places, reporter, *from, out)
        }
    }
}

/// Looks at all folders; what a living process removes meanwhile is left out.
fn survey_all(
    places: &[SpoolPlace],
    each: &mut dyn FnMut(u64, &UsageRecord) -> io::Result<()>,
) -> io::Result<Vec<FolderSurvey>> {
    let mut found = Vec::new();
    for place in places {
        let reader = RealDisk::reader(&place.dir);
        match survey(&reader, |sequence, _, record| each(sequence, record)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !place.dir.exists() => {}
            Err(error) => {
                let message = format!("{}: {error}", place.dir.display());
                return Err(io::Error::new(error.kind(), message));
            }
            Ok(survey) => {
                let (folder, in_use) = (place.name.clone(), place.is_in_use());
                let in_rings = place.in_rings()?;
                found.push(FolderSurvey { folder, in_use, in_rings, survey });
            }
        }
    }
    Ok(found)
}

/// Sequences count in each folder for itself.
fn names_one(places: &[SpoolPlace], is_by_sequence: bool) -> io::Result<()> {
    if !is_by_sequence || places.len() <= 1 {
        return Ok(());
    }
    let dirs: Vec<_> = places.iter().map(|place| place.dir.display().to_string()).collect();
    Err(io::Error::other(format!(
        "sequences count in each folder for itself: choose one with --dir, of {}",
        dirs.join(", ")
    )))
}

fn print(found: &AllSurvey, out: &mut dyn Write) -> io::Result<()> {
    for FolderSurvey { folder, in_use, in_rings, survey } in &found.folders {
        writeln!(out, "FOLDER {folder} ({})", if *in_use { "in use" } else { "free" })?;
        print_folder(survey, out)?;
        if *in_rings > 0 {
            writeln!(out, "{in_rings} entries in rings are not in a segment yet")?;
        }
        writeln!(out)?;
    }
    if found.folders.len() > 1 {
        writeln!(out, "{:<24} {:>9} {:<26} DEAD, in all folders", "REPORTER", "BACKLOG", "OLDEST")?;
        for r in &found.reporters {
            let (name, oldest) = (&r.name, oldest(r.oldest_ms));
            writeln!(out, "{name:<24} {:>9} {oldest:<26} {}", r.backlog, r.dead_letters)?;
        }
        writeln!(out)?;
    }
    writeln!(out, "{} requests without an end", found.open)
}

fn oldest(unix_ms: Option<u64>) -> String {
    unix_ms.and_then(time_of).map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
}

fn print_folder(found: &Survey, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "{:<21} {:>10} {:>12} {:>12} {:>8} {:>8} {:>8} {:>7} {:>8}",
        "SEGMENT", "BYTES", "FIRST", "LAST", "OPENS", "NOTES", "RECORDS", "AGAIN", "DAMAGED"
    )?;
    for s in &found.segments {
        writeln!(
            out,
            "{:<21} {:>10} {:>12} {:>12} {:>8} {:>8} {:>8} {:>7} {:>8}",
            s.file, s.bytes, s.first, s.last, s.opens, s.notes, s.closes, s.again, s.damaged_bytes
        )?;
    }
    writeln!(out, "\n{:<24} {:>12} {:>9} {:<26} DEAD", "REPORTER", "THROUGH", "BACKLOG", "OLDEST")?;
    for r in &found.reporters {
        let (name, dead, oldest) = (&r.name, r.dead_letters, oldest(r.oldest_ms));
        writeln!(out, "{name:<24} {:>12} {:>9} {oldest:<26} {dead}", r.through, r.backlog)?;
    }
    for r in &found.reporters {
        if let Some(left) = r.left_ms.and_then(time_of) {
            writeln!(out, "{} is not configured any more, noticed {left:.3}", r.name)?;
        }
    }
    Ok(())
}

fn time_of(unix_ms: u64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(i64::try_from(unix_ms).ok()?).ok()
}

fn export(places: &[SpoolPlace], span: SpoolSpan, out: &mut dyn Write) -> io::Result<()> {
    let mut each = |sequence: u64, record: &UsageRecord| {
        if begins(span.from, sequence, record) && span.to.is_none_or(|to| sequence <= to) {
            out.write_all(&record.to_line(RecordFormat::Full))?;
        }
        Ok(())
    };
    survey_all(places, &mut each).map(drop)
}

fn begins(from: Option<Start>, sequence: u64, record: &UsageRecord) -> bool {
    match from {
        None => true,
        Some(Start::Sequence(first)) => sequence >= first,
        Some(Start::Since(ms)) => record.timestamp_ms >= ms,
    }
}

/// In each folder in which there is something for this reporter.
fn replay(
    places: &[SpoolPlace],
    reporter: &str,
    from: Option<Start>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut known = Vec::new();
    let (mut done, mut failed) = (0, None);
    for place in places {
        let found = survey_all(std::slice::from_ref(place), &mut |_, _| Ok(()))?;
        let names: Vec<String> =
            found.iter().flat_map(|f| &f.survey.reporters).map(|r| r.name.clone()).collect();
        let is_here = names.iter().any(|name| name == reporter);
        known.extend(names.into_iter().filter(|name| !known.contains(name)).collect::<Vec<_>>());
        // A replay that is under way is told of.
        let files = [dead_letter::SUFFIX, SUFFIX].map(|suffix| format!("{reporter}{suffix}"));
        let is_any = files.iter().any(|file| place.dir.join(file).exists());
        if !is_here || (from.is_none() && !is_any) {
            continue;
        }
        match replay_in(&place.dir, reporter, from, out) {
            Ok(()) => done += 1,
            Err(error) => failed = Some(error),
        }
    }
    if !known.iter().any(|name| name == reporter) {
        let known = known.join(", ");
        return Err(io::Error::other(format!("no such reporter: {reporter}; there are: {known}")));
    }
    match failed {
        // In one folder there may be nothing to replay while there is in another.
        Some(error) if done == 0 || error.kind() != io::ErrorKind::NotFound => Err(error),
        None if done == 0 => writeln!(out, "{reporter}: 0 dead letters are delivered again"),
        _ => Ok(()),
    }
}

fn replay_in(
    dir: &Path,
    reporter: &str,
    from: Option<Start>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let disk = Arc::new(RealDisk::new(dir));
    let is_running = match disk.lock() {
        Ok(()) => false,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
        Err(error) => return Err(error),
    };
    let mut first = None;
    let found = survey(&*disk, |sequence, _, record| {
        if first.is_none() && begins(from, sequence, record) {
            first = Some(sequence);
        }
        Ok(())
    })?;
    let names: Vec<String> = found.reporters.iter().map(|r| r.name.clone()).collect();
    let gone =
        || io::Error::new(io::ErrorKind::NotFound, "the spool holds no such record any more");
    let known = found.reporters.iter().find(|r| r.name == reporter).ok_or_else(gone)?;
    if is_running && known.left_ms.is_some() {
        return Err(io::Error::other(format!(
            "{reporter} is not configured in the running gateway"
        )));
    }
    if from.is_none() {
        return match is_running {
            true => live::replay_dead_letters(dir, reporter, out),
            false => replay_dead_letters(disk, reporter, &names, out),
        };
    }
    let first = first.ok_or_else(gone)?;
    if is_running {
        return live::replay_records(dir, reporter, (first, known.through), out);
    }
    let through = first.saturating_sub(1);
    Checkpoint::open(&*disk, reporter)?.set(through)?;
    writeln!(out, "{reporter}: goes on behind {through}; it was at {}", known.through)
}

/// Appends them as records for this reporter alone, then puts their file aside. What cannot be read
/// stays.
///
/// All that needs much room comes first: once the records are queued, a try that fails would queue
/// them again with the next one. Their file goes last: who is killed in between has delivered them
/// once more, and lost nothing.
fn replay_dead_letters(
    disk: Arc<dyn Disk>,
    reporter: &str,
    names: &[String],
    out: &mut dyn Write,
) -> io::Result<()> {
    let name = format!("{reporter}{}", dead_letter::SUFFIX);
    let letters = dead_letter::read(&*disk, &name)?.unwrap_or_default();
    // What a person asks for goes in, whatever the plan allows.
    let plan = Spool { max_bytes: u64::MAX, on_failure: OnSpoolFailure::Serve, ..Spool::default() };
    let mut spool = open(Arc::clone(&disk), Options::of(&plan), names)?;
    let archive = dead_letter::free_name(&*disk, reporter)?;
    let is_any = dead_letter::lines(&letters).any(|(.., record)| record.is_some());
    if is_any {
        let told = |e: io::Error| {
            let message =
                format!("{archive}: {e}; it is to be a copy of {name}. Nothing is changed");
            io::Error::new(e.kind(), message)
        };
        dead_letter::write_whole(&*disk, &archive, &letters).map_err(told)?;
    }
    let (mut taken, mut kept) = (0, Kept::default());
    for (number, line, record) in dead_letter::lines(&letters) {
        if record.is_some_and(|record| spool.writer.append_again(reporter, &record)) {
            spool.writer.commit();
            taken += 1;
        } else {
            kept.add(number, line);
        }
    }
    spool.keeper.turn();
    let is_lost = spool.state.failing.load(Relaxed) || spool.state.sync_errors.load(Relaxed) > 0;
    if is_any && (is_lost || taken == 0) {
        // The letters are where they were: nobody needs a copy.
        let _ = disk.remove(&archive);
    }
    if is_lost {
        return Err(io::Error::other(format!("the disk does not take them; {name} is as it was")));
    }
    let mut place = &name;
    if taken > 0 {
        let is_kept =
            !kept.lines.is_empty() && dead_letter::write_whole(&*disk, &name, &kept.lines).is_ok();
        if !is_kept {
            disk.remove(&name).and_then(|()| disk.sync_dir())?;
            // Where there is no room for them a second time, the copy has them.
            place = &archive;
        }
    }
    writeln!(out, "{reporter}: {taken} dead letters are delivered again at the next start")?;
    kept.tell(place)
}

/// Lines of a file of dead letters that are not delivered again.
#[derive(Default)]
struct Kept {
    numbers: Vec<String>,
    lines: Vec<u8>,
}

impl Kept {
    fn add(&mut self, number: usize, line: &[u8]) {
        self.numbers.push(number.to_string());
        self.lines.extend([line, b"\n"].concat());
    }

    /// An error, if there is one, that names them.
    fn tell(&self, file: &str) -> io::Result<()> {
        let numbers = self.numbers.get(..KEPT_NAMED_MAX.min(self.numbers.len()));
        let (count, numbers) = (self.numbers.len(), numbers.unwrap_or_default().join(", "));
        let more = if count > KEPT_NAMED_MAX { ", ..." } else { "" };
        match count {
            0 => Ok(()),
            _ => Err(io::Error::other(format!(
                "{file}: {count} lines cannot be read and stay there: line {numbers}{more}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
