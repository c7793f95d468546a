//! A page to try hart in a browser, and a server for programs: `cargo run --release -p hart-examples --features web --bin web`.

mod api;
mod connections;
mod failure;
mod guard;
mod job;
mod json;
mod openai;
mod page;
mod queue;
mod settings;
mod worker;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::Parser;
use hart_core::{Hart, PromptFilter};
use hart_examples::cli::settings::Opening;
use hart_examples::cli::word_filter::WordFilter;
use hart_examples::cli::{INTERRUPTED, output};
use tokio::net::TcpListener;

use crate::failure::Failure;
use crate::queue::{KEPT_IMAGES, Queue};
use crate::settings::{Checked, Settings};

/// Serves a page that makes pictures, and OpenAI's images API.
#[derive(Parser, Debug)]
#[command(name = "web", version, about = "A web page and an API that make pictures with HART", max_term_width = 110)]
struct Arguments {
    #[command(flatten)]
    opening: Opening,
    /// Refuses prompts with a word or phrase of this list, one a line
    #[arg(long, value_name = "FILE")]
    filter: Option<PathBuf>,
    /// Port; 0 takes a free one
    #[arg(short, long, default_value_t = 7860)]
    port: u16,
    /// Address to listen on; any but this machine's own is open to others, who need no password
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String,
    /// Requests that may wait while one is worked on
    #[arg(long, value_name = "COUNT", default_value_t = 8)]
    queue: usize,
    /// Most pictures of one request
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=KEPT_IMAGES as i64))]
    max_images: u16,
}

/// What every handler sees.
pub struct App {
    /// The model.
    pub hart: Hart,
    /// Its name: that of its folder.
    pub name: String,
    /// What it won't draw.
    pub filter: Option<WordFilter>,
    /// Work, and what came of it.
    pub queue: Queue,
    /// Most pictures of one request.
    pub max_images: usize,
    /// Whether only this machine reaches the server.
    pub loopback: bool,
}

impl App {
    /// Checks what is to be made.
    ///
    /// # Errors
    ///
    /// The first value that won't do, or a prompt that is refused.
    fn check(&self, settings: Settings) -> Result<Checked, Failure> {
        match self.filter.as_ref().and_then(|filter| filter.refuse(&settings.prompt)) {
            Some(reason) => {
                Err(Failure::bad("prompt", format!("the prompt is refused: {reason}")).code("content_policy_violation"))
            }
            None => settings.check(self.max_images),
        }
    }
}

fn main() -> ExitCode {
    hart_examples::cli::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    // One thread serves: all it does is hand over text and finished files.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    // The port before the model, which may take long to open.
    let listener = TcpListener::bind((arguments.host.as_str(), arguments.port))
        .await
        .map_err(|e| format!("can't listen on {}, port {}: {e}; see --host and --port", arguments.host, arguments.port))?;
    let address = listener.local_addr()?;
    let app = Arc::new(open(arguments, address.ip().is_loopback())?);
    let worker = std::thread::Builder::new().name("hart-worker".into()).spawn({
        let app = app.clone();
        move || worker::work(&app)
    })?;
    let signal = signals()?;
    if !app.loopback {
        eprintln!("warning: whoever reaches {address} can make pictures: there is no password and no encryption");
    }
    let side = app.hart.config().resolution();
    // If nobody reads this the server is no worse for it.
    let _ = output::say(format!("http://{address}/ ({}, {side} x {side} pixels; Ctrl-C ends it)", app.name));

    let shutdown = async {
        signal.await;
        eprintln!("stopping");
        // Ends the event streams too.
        app.queue.close();
    };
    connections::serve(listener, router(app.clone()), shutdown).await;
    // A run that was just cancelled ends within a layer; one that doesn't is left to the end of the program.
    for _ in 0..10 {
        if worker.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn open(arguments: &Arguments, loopback: bool) -> Result<App, Box<dyn Error>> {
    let Arguments { opening: Opening { model, .. }, filter, .. } = arguments;
    let filter = filter.as_deref().map(WordFilter::open).transpose()?;
    let hart = arguments.opening.open()?;
    let folder = model.canonicalize().unwrap_or_else(|_| model.clone());
    let name = folder.file_name().map_or_else(|| "hart".into(), |n| n.to_string_lossy().into_owned());
    Ok(App { hart, name, filter, queue: Queue::new(arguments.queue), max_images: arguments.max_images.into(), loopback })
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .merge(page::routes())
        .merge(api::routes())
        .merge(openai::routes())
        .fallback(failure::not_found)
        .method_not_allowed_fallback(failure::not_allowed)
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Heard from here on; ends with the first Ctrl-C or SIGTERM. The second ends the program at once.
fn signals() -> std::io::Result<impl Future<Output = ()>> {
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
