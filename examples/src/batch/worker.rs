//! The work of a batch: prompts are encoded ahead, and images are generated in any number of threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Instant;

use hart_core::{Control, Error, Event, Hart, Image, ImageFormat, Marks, PromptContext, Request};
use hart_examples::cli::output::shortened;
use hart_examples::cli::sign::Signing;
use hart_examples::cli::word_filter::WordFilter;
use serde_json::json;

use crate::in_work::InWork;
use crate::ledger::{Finished, Ledger};
use crate::progress::Progress;
use crate::selection::{CHANGED, Selected, Selection};
use crate::stop::Stop;
use crate::store::{Found, ImageFolder};
use crate::tar_files::TarFiles;
use crate::task::{Defaults, LineError, Task, plain};

/// Number of prompts that are encoded together. Weights of a text model that are converted are converted once for all of them.
const GROUP: usize = 16;

/// The files that images are written to.
pub enum Store {
    /// A file for each image.
    Images(ImageFolder),
    /// Tar files.
    Tar(TarFiles),
}

/// A batch in work.
pub struct Worker<'a> {
    /// The model; `None` if no line needs it.
    pub hart: Option<&'a Hart>,
    pub store: &'a Store,
    pub ledger: &'a Ledger,
    pub in_work: &'a InWork,
    pub defaults: &'a Defaults,
    pub filter: Option<&'a WordFilter>,
    pub signing: &'a Signing,
    pub progress: &'a Progress,
    pub stop: &'a Stop,
    /// Number of images that are generated at once.
    pub parallel: usize,
    /// Number of failed lines after which the batch stops.
    pub max_failures: Option<u64>,
}

/// The state that the threads of a batch share.
#[derive(Default)]
struct Shared {
    /// The error that ends the batch.
    fatal: Mutex<Option<String>>,
    /// Number of images that are encoded and not finished.
    waiting: AtomicU64,
    /// Locked for reading by images in work, and for writing by one that is generated alone.
    running: RwLock<()>,
}

/// An image whose prompt is encoded.
struct Ready {
    task: Task,
    context: PromptContext,
    /// `true` if no other image may be in work at the same time.
    is_alone: bool,
}

impl Worker<'_> {
    /// Generates all images of a selection that are not done. Returns whether all lines have an image or an error.
    ///
    /// # Errors
    ///
    /// Returns the error that ends the batch: one that would affect all further lines.
    pub fn run(&self, mut selection: Selection<'_>) -> Result<bool, String> {
        let (sender, receiver) = sync_channel(GROUP);
        let (receiver, shared) = (Arc::new(Mutex::new(receiver)), Shared::default());
        let is_read = thread::scope(|scope| {
            for _ in 0..self.parallel {
                let (receiver, shared) = (receiver.clone(), &shared);
                scope.spawn(move || self.generate_all(&receiver, shared));
            }
            // The last thread that stops drops the receiver, which ends a sender that waits.
            drop(receiver);
            let fed = self.feed(&mut selection, &Encoded { sender, shared: &shared, is_alone: false });
            self.accept(fed, &shared).unwrap_or(false)
        });
        let is_complete = is_read && shared.waiting.load(Ordering::Acquire) == 0;
        self.accept(self.in_work.close(is_complete), &shared);
        if let Some(error) = shared.fatal.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        if let Store::Tar(files) = self.store
            && is_complete
        {
            files.finish(self.ledger)?;
        }
        Ok(is_complete)
    }

    /// Stops the batch if the result is an error. Keeps the first error.
    fn accept<T>(&self, result: Result<T, String>, shared: &Shared) -> Option<T> {
        let store = |error| {
            shared.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            self.stop.set();
        };
        result.map_err(store).ok()
    }

    /// Reports the error of a line.
    fn fail(&self, error: &LineError) -> Result<(), String> {
        self.ledger.fail(error)?;
        let failed = self.progress.failed(error);
        if self.max_failures.is_some_and(|limit| failed > limit) {
            self.stop.set();
        }
        Ok(())
    }

    fn fail_task(&self, task: &Task, problem: String) -> Result<(), String> {
        self.fail(&LineError { line: task.line, id: Some(task.id.clone()), problem })
    }

    /// Reads lines and encodes their prompts, ahead of the threads that generate. Returns whether the end was reached.
    fn feed(&self, selection: &mut Selection<'_>, encoded: &Encoded<'_>) -> Result<bool, String> {
        // The first images begin early.
        let (mut group, mut size) = (Vec::new(), self.parallel.min(GROUP));
        let mut last = Vec::new();
        while !self.stop.is_set() {
            // The writer of a pipe may wait for the images.
            if !group.is_empty() && selection.would_wait() && !self.encode(std::mem::take(&mut group), encoded)? {
                break;
            }
            let Some(selected) = selection.next().map_err(|e| format!("the input can't be read: {e}"))? else {
                // A pipe ends early if the batch is to stop.
                if self.stop.is_set() {
                    break;
                }
                last.sort_by_key(|(interruptions, _)| *interruptions);
                let is_passed_on = self.encode(group, encoded)?;
                let alone = &Encoded { is_alone: true, ..encoded.clone() };
                return last.into_iter().try_fold(is_passed_on, |all, (_, task)| Ok(all & self.encode(vec![task], alone)?));
            };
            match selected {
                Selected::Done => {}
                Selected::Failed(error) => self.fail(&error)?,
                Selected::Unchecked(task) => self.check_done(&task)?,
                Selected::New(task) => {
                    let Some(task) = self.check_new(*task)? else { continue };
                    let interruptions = self.in_work.interruptions(&task.id);
                    if interruptions > 0 {
                        last.push((interruptions, task));
                        continue;
                    }
                    let differs = |other: &Task| other.settings.system_prompt != task.settings.system_prompt;
                    if group.len() >= size || group.last().is_some_and(differs) {
                        self.encode(std::mem::take(&mut group), encoded)?;
                        size = GROUP;
                    }
                    group.push(task);
                }
            }
        }
        Ok(false)
    }

    /// Checks an image that is done, but whose result says nothing of its settings.
    fn check_done(&self, task: &Task) -> Result<(), String> {
        match self.store {
            Store::Images(folder) => match folder.difference(task, self.model()?) {
                Some(difference) => self.fail_task(task, format!("{CHANGED} ({difference})")),
                None => Ok(()),
            },
            Store::Tar(_) => Ok(()),
        }
    }

    /// Returns a task if its image has to be generated.
    fn check_new(&self, task: Task) -> Result<Option<Task>, String> {
        if let Some(Err(refused)) = self.filter.map(|filter| filter.check(std::slice::from_ref(&task.settings.prompt))) {
            return self.fail_task(&task, refused.to_string()).map(|()| None);
        }
        let Store::Images(folder) = self.store else { return Ok(Some(task)) };
        let difference = match folder.find(&task, self.model()?)? {
            Found::Nothing | Found::Damaged => return Ok(Some(task)),
            // Images of this batch have no settings either.
            Found::Unknown if !self.marks().settings || !self.marks().prompt => return Ok(Some(task)),
            Found::Unknown => "it lacks its prompt or its settings".into(),
            Found::Image => {
                let finished = self.finished(&task, 0, Vec::new());
                self.ledger.add(&finished)?;
                self.progress.found();
                return Ok(None);
            }
            Found::Other(difference) => difference,
        };
        let problem = format!(
            "{} exists and is another image ({difference}): move it, give the line another id, or choose another folder",
            task.id.file_name()
        );
        self.fail_task(&task, problem).map(|()| None)
    }

    fn model(&self) -> Result<&Hart, String> {
        // The lines were counted, and changed since.
        self.hart.ok_or_else(|| "the input has changed while it was read: run the same command again".into())
    }

    fn marks(&self) -> Marks {
        self.defaults.request.marks()
    }

    fn finished(&self, task: &Task, milliseconds: u64, more_warnings: Vec<String>) -> Finished {
        Finished {
            id: task.id.clone(),
            file: task.id.file_name(),
            seed: task.settings.seed,
            milliseconds,
            warnings: [task.warnings.clone(), more_warnings].concat(),
            digest: task.digest(self.defaults),
        }
    }

    /// Encodes the prompts of some tasks, which have the same system prompt, and passes them on. Returns whether all were passed on or
    /// have failed.
    fn encode(&self, tasks: Vec<Task>, encoded: &Encoded<'_>) -> Result<bool, String> {
        let Some(first) = tasks.first() else { return Ok(true) };
        let prompts = tasks.iter().map(|task| task.settings.prompt.as_str());
        let request = Request::batch(prompts).system_prompt(first.settings.system_prompt());
        let mut until_stop = |_: &Event<'_>| if self.stop.is_set() { Control::Cancel } else { Control::Continue };
        match self.model()?.encode_with(&request, &mut until_stop) {
            Ok(contexts) => Ok(tasks.into_iter().zip(contexts.split()).all(|(task, context)| encoded.send(task, context))),
            Err(Error::Cancelled) => Ok(false),
            Err(error) if !is_of_line(&error) => Err(error.to_string()),
            Err(error) if tasks.len() == 1 => self.fail_task(first, plain(&error)).map(|()| true),
            // One of them is the cause.
            Err(_) => tasks.into_iter().try_fold(true, |all, task| Ok(all & self.encode(vec![task], encoded)?)),
        }
    }

    fn generate_all(&self, receiver: &Mutex<Receiver<Ready>>, shared: &Shared) {
        while !self.stop.is_set() {
            let next = receiver.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(ready) = next.recv() else { break };
            let lock = &shared.running;
            let _running = (!ready.is_alone).then(|| lock.read().unwrap_or_else(PoisonError::into_inner));
            let _alone = ready.is_alone.then(|| lock.write().unwrap_or_else(PoisonError::into_inner));
            // Images that are generated alone keep their order, because no thread receives another one before this.
            drop(next);
            if !self.stop.is_set() && self.accept(self.generate(&ready), shared).is_some() {
                self.in_work.end(&ready.task.id);
                shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }

    /// Generates an image and saves it. An image that has begun is finished, also after a signal.
    fn generate(&self, Ready { task, context, .. }: &Ready) -> Result<(), String> {
        self.in_work.begin(&task.id)?;
        let start = Instant::now();
        let request = task.settings.request().marks(self.marks()).context(context.clone());
        let mut generation = match self.model()?.generate(&request) {
            Ok(generation) => generation,
            Err(error) if is_of_line(&error) => return self.fail_task(task, plain(&error)),
            Err(error) => return Err(error.to_string()),
        };
        let milliseconds = start.elapsed().as_millis() as u64;
        let warnings = generation.truncated.iter().map(|truncation| {
            let text = truncation.prompt.map_or("the system prompt", |_| "the prompt");
            let (tokens, kept, cut) = (truncation.tokens, truncation.kept, shortened(&truncation.cut));
            format!("{text} has {tokens} tokens, the model reads {kept}; ignored: \"{cut}\"")
        });
        let finished = self.finished(task, milliseconds, warnings.collect());
        let has_warnings = !finished.warnings.is_empty();
        let image = generation.images.pop().ok_or("a request generates one image")?;
        self.save(task, &image, finished)?;
        self.progress.generated(has_warnings);
        Ok(())
    }

    fn save(&self, task: &Task, image: &Image, finished: Finished) -> Result<(), String> {
        let png = self.signing.encode(image, ImageFormat::Png).map_err(|e| format!("{}: {e}", task.id.file_name()))?;
        match self.store {
            Store::Images(folder) => {
                folder.write(&finished.file, &png)?;
                self.ledger.add(&finished)
            }
            Store::Tar(files) => {
                let marks = self.marks();
                let prompt = marks.prompt.then_some(&task.settings.prompt);
                let settings = image.provenance.as_ref().filter(|_| marks.settings).map(|provenance| &provenance.settings);
                files.save(&png, json!({ "prompt": prompt, "settings": settings }), finished, self.ledger)
            }
        }
    }
}

/// The images that wait for a thread.
#[derive(Clone)]
struct Encoded<'a> {
    sender: SyncSender<Ready>,
    shared: &'a Shared,
    is_alone: bool,
}

impl Encoded<'_> {
    /// Waits for a place and adds an image. Returns `false` if all threads have stopped.
    fn send(&self, task: Task, context: PromptContext) -> bool {
        self.shared.waiting.fetch_add(1, Ordering::AcqRel);
        self.sender.send(Ready { task, context, is_alone: self.is_alone }).is_ok()
    }
}

/// Returns whether an error is that of a line's request. Others end the batch.
fn is_of_line(error: &Error) -> bool {
    matches!(error, Error::Request { .. } | Error::Refused { .. } | Error::Memory { .. } | Error::Overflow { .. })
}
