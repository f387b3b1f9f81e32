//! stub
pub struct Delivery;
impl Delivery { pub fn delivered(&self)->u64{0} pub fn failed(&self)->u64{0} pub fn dropped(&self)->u64{0} pub fn queued(&self)->u64{0} }
