//! temporary
use crate::config::plan::*;
use std::time::Duration;
pub fn run() -> Result<Plan, std::process::ExitCode> {
    let args: Vec<String> = std::env::args().collect();
    let d = Duration::from_secs;
    let backends = args[2..].iter().map(|u| {
        let hp = u.strip_prefix("http://").unwrap();
        let (h,p)=hp.rsplit_once(':').unwrap();
        Backend{name:hp.into(),url:u.clone(),endpoint:Endpoint::Tcp{host:h.into(),port:p.parse().unwrap()},tls:None,base_path:String::new(),host:hp.into(),weight:1,connect_timeout:d(2),first_byte_timeout:d(300),idle_timeout:d(120),keepalive_timeout:d(3),max_idle_conns:100,headers:vec![],health_path:None,on_client_abort:OnClientAbort::Close}
    }).collect();
    Ok(Plan{server:Server{listen:args[1].parse().unwrap(),workers:1,cpu_affinity:vec![0],max_connections:None,max_header_bytes:65536,max_body_size:32<<20,header_timeout:d(10),body_timeout:d(30),write_timeout:d(60),idle_timeout:d(75),drain_timeout:Some(d(5)),forward_credentials:false,paths:vec!["/v1/*".into()]},
      log:Log{level:"debug".into(),format:LogFormat::Json,output:LogOutput::Stdout,access:None},backends,
      health_check:Some(HealthCheck{interval:d(2),timeout:d(1),path:"/health".into(),method:"GET".into(),expected_status:vec![],unhealthy_threshold:3,healthy_threshold:2}),
      usage:Usage{reporters:vec![Reporter{name:"x".into(),kind:ReporterKind::Webhook(Webhook{url:crate::base::secret::Secret::new("x"),method:"POST".into(),timeout:d(1),retry:1,headers:vec![],format:RecordFormat::Full})}],request_body_max:None},metrics:Some(Metrics{listen:None,path:"/metrics".into(),latency_buckets_ms:vec![10,50,100,200,500,1000]}),unbuilt:vec![]})
}
