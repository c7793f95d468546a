//! A web server with a page for trying hart in a browser and an API for programs:
//! `cargo run --release -p hart-examples --features web --bin web`.

mod a1111;
mod access;
mod api;
mod api_error;
mod body;
mod connections;
mod contexts;
mod fields;
mod guard;
mod job;
mod json;
mod metrics;
mod openai;
mod output;
mod page;
mod queue;
mod run;
mod settings;
mod source;
mod worker;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use clap::Parser;
use hart_core::{Hart, Marks, PromptFilter};
use hart_examples::cli::INTERRUPTED;
use hart_examples::cli::args::{ModelArgs, value};
use hart_examples::cli::sign::{SignArgs, Signing};
use hart_examples::cli::word_filter::WordFilter;
use tokio::net::TcpListener;

use crate::access::Access;
use crate::api_error::ApiError;
use crate::contexts::Contexts;
use crate::metrics::Metrics;
use crate::queue::{MAX_STORED_IMAGES, Queue};
use crate::settings::{CheckedSettings, Settings};

/// Command line of the server.
#[derive(Parser)]
#[command(name = "web", version, about = "Serve a web page and an API that generate images with HART", max_term_width = 110)]
struct Arguments {
    #[command(flatten)]
    model: ModelArgs,
    /// Refuse prompts that contain a word or phrase of this file, one per line
    #[arg(long, value_name = "FILE")]
    filter: Option<PathBuf>,
    /// Leave marks out of the image files, such as prompt or prompt,settings
    #[arg(long, value_name = "prompt|parameters|settings|source|all", value_parser = value::<Marks>)]
    omit_marks: Option<Marks>,
    #[command(flatten)]
    sign: SignArgs,
    /// Port to listen on; 0 selects a free one
    #[arg(short, long, default_value_t = 7860)]
    port: u16,
    /// Address to listen on. Without --api-key, everyone who can reach an address beyond loopback can use the server
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Maximum number of requests that wait while others run
    #[arg(long, value_name = "COUNT", default_value_t = 64)]
    queue: usize,
    /// Maximum number of images per request
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=MAX_STORED_IMAGES as i64))]
    max_images: u16,
    /// Refuse requests of OpenAI's API for a size other than the model's, instead of scaling
    #[arg(long)]
    strict_size: bool,
    /// Key that requests must present; better set in the environment variable HART_API_KEY, since other users can see options
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Let web pages of this origin, such as `https://example.com`, use the server; * admits all. May be repeated
    #[arg(long, value_name = "ORIGIN")]
    allow_origin: Vec<String>,
    /// Time that accepted requests have to finish when the server is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
}

/// State shared by all handlers and the workers.
pub struct App {
    /// The model.
    pub hart: Hart,
    /// Name of the model: its folder's name.
    pub name: String,
    /// Filter that refuses prompts.
    pub filter: Option<WordFilter>,
    /// Marks that the image files get.
    pub marks: Marks,
    /// How the image files are signed.
    pub signing: Signing,
    /// Jobs and their results.
    pub queue: Queue,
    /// Maximum number of images per request.
    pub max_images: usize,
    /// True if sizes other than the model's are refused.
    pub strict_size: bool,
    /// The rules of access.
    pub access: Access,
    /// Counts for `/metrics`.
    pub metrics: Metrics,
    /// True if the server listens on a loopback address.
    pub loopback: bool,
}

impl App {
    /// Applies the filter and validates settings.
    ///
    /// # Errors
    ///
    /// Returns an error if the prompt is refused, or one that names the first invalid field.
    fn check(&self, settings: Settings) -> Result<CheckedSettings, ApiError> {
        match self.filter.as_ref().and_then(|filter| filter.refuse(&settings.prompt)) {
            Some(reason) => {
                Err(ApiError::bad_request("prompt", format!("the prompt is refused: {reason}")).code("content_policy_violation"))
            }
            None => {
                let checked = settings.check(self.max_images)?;
                let marks = self.marks.without(checked.omitted_marks);
                let request = checked.request.marks(marks);
                self.hart.check(&request)?;
                Ok(CheckedSettings { request, ..checked })
            }
        }
    }
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code::<Arguments>(run(&hart_examples::cli::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    // One thread is enough: handlers only pass on text and finished files.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    // Bind first: opening the model may take long, and the port may be taken.
    let listener = TcpListener::bind((arguments.host.as_str(), arguments.port))
        .await
        .map_err(|e| format!("can't listen on {}, port {}: {e}; see --host and --port", arguments.host, arguments.port))?;
    let address = listener.local_addr()?;
    let app = Arc::new(open_app(arguments, address.ip().is_loopback())?);
    let contexts = Arc::<Mutex<Contexts>>::default();
    let start_worker = |_| {
        let (app, contexts) = (app.clone(), contexts.clone());
        std::thread::Builder::new().name("hart-worker".into()).spawn(move || worker::run(&app, &contexts))
    };
    let workers = (0..app.hart.parallel()).map(start_worker).collect::<Result<Vec<_>, _>>()?;
    let signal = shutdown_signal()?;
    if !app.loopback && app.access.key.is_none() {
        eprintln!(
            "warning: everyone who can reach {address} can generate images: there is no password (see --api-key) and no encryption"
        );
    } else if !app.loopback {
        eprintln!("warning: requests to {address} and the key are not encrypted");
    }
    let side = app.hart.config().resolution();
    // A closed standard output does not stop the server.
    let _ = hart_examples::cli::output::print_line(format!(
        "http://{address}/ ({}, {side} x {side} pixels; Ctrl-C stops the server)",
        app.name
    ));

    let shutdown = async {
        signal.await;
        eprintln!("stopping");
        // Until then, new requests are refused with an answer.
        app.queue.drain();
        let deadline = Instant::now() + Duration::from_secs(arguments.grace);
        while app.queue.lengths() != (0, 0) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // This ends the event streams too.
        app.queue.close();
    };
    connections::serve(listener, router(app.clone()), shutdown).await;
    // A cancelled run ends after its current layer. If that takes too long, the exit of the process ends it.
    for _ in 0..10 {
        if workers.iter().all(|worker| worker.is_finished()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn open_app(arguments: &Arguments, loopback: bool) -> Result<App, Box<dyn Error>> {
    let Arguments { model: ModelArgs { folder, .. }, filter, .. } = arguments;
    let filter = filter.as_deref().map(WordFilter::open).transpose()?;
    let signing = arguments.sign.open()?;
    let hart = arguments.model.open()?;
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let name = folder.file_name().map_or_else(|| "hart".into(), |n| n.to_string_lossy().into_owned());
    let key = arguments.api_key.clone().or_else(|| std::env::var(access::KEY_VARIABLE).ok());
    if key.as_ref().is_some_and(|key| key.trim().is_empty()) {
        return Err(format!("the key of --api-key or {} is empty: set one, or leave it out", access::KEY_VARIABLE).into());
    }
    Ok(App {
        queue: Queue::new(arguments.queue, hart.parallel()),
        hart,
        name,
        filter,
        marks: Marks::ALL.without(arguments.omit_marks.unwrap_or(Marks::NONE)),
        signing,
        max_images: arguments.max_images.into(),
        strict_size: arguments.strict_size,
        access: Access { key, origins: arguments.allow_origin.clone() },
        metrics: Metrics::default(),
        loopback,
    })
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .merge(page::routes())
        .merge(api::routes())
        .merge(openai::routes())
        .merge(a1111::routes())
        .merge(metrics::routes())
        .fallback(api_error::unknown_path)
        .method_not_allowed_fallback(api_error::wrong_method)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Installs the signal handlers and returns a future that completes with the first Ctrl-C or SIGTERM. A second Ctrl-C ends the
/// process at once.
fn shutdown_signal() -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let terminated = async move {
        #[cfg(unix)]
        terminate.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    };
    Ok(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            () = terminated => {}
        }
        tokio::spawn(async {
            let _ = tokio::signal::ctrl_c().await;
            std::process::exit(INTERRUPTED.into());
        });
    })
}
