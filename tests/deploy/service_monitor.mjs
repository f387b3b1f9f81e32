// Reads manifests of ServiceMonitors from standard input, a JSON list, and fails for the first one
// that the Prometheus operator's schema refuses.
import { ServiceMonitor } from
  "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";
import { readFileSync } from "node:fs";

for (const manifest of JSON.parse(readFileSync(0, "utf8"))) {
  new ServiceMonitor(manifest).validate();
}
