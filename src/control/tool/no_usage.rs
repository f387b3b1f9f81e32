//! In place of `llmproxy usage` in a build without the feature `sql`.

use crate::config::cli::{Printout, UsageQuestion, WOULD_NOT_START};

/// Says that there is no answer.
pub fn answer(question: &UsageQuestion) -> Printout {
    let db = question.db.display();
    let stderr = format!("llmproxy usage: {db}: this program was built without SQL\n");
    Printout { stdout: String::new(), stderr, code: WOULD_NOT_START }
}
