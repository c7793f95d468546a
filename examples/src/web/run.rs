//! A queued job and the handler that waits for it.

use std::sync::Arc;

use crate::App;
use crate::api_error::ApiError;
use crate::job::{Job, JobEvent};

/// Guard that cancels the run when the client disconnects: the server then drops the handler, which owns the guard.
pub struct CancelOnDisconnect {
    /// The state of the server.
    pub app: Arc<App>,
    /// The job.
    pub job: Arc<Job>,
}

impl Drop for CancelOnDisconnect {
    fn drop(&mut self) {
        if !self.job.has_ended() {
            self.app.queue.cancel(&self.job);
        }
    }
}

/// Returns the error of a job whose last event is `last`, unless it is done.
pub fn failure(last: &JobEvent) -> Option<ApiError> {
    match last.name {
        "done" => None,
        "error" => Some(ApiError::internal(last.data["message"].as_str().unwrap_or_default())),
        _ => Some(ApiError::stopping()),
    }
}
