// What istiod sends a gateway's proxy: run by tests/e2e/istio_gateway.py, which says how to build it.
package istiod

import (
	"encoding/json"
	"os"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
)

// Reads Istio's manifests ($MANIFESTS) and Kubernetes' ($OBJECTS); writes listeners, routes, clusters and endpoints of
// the proxy with $LABELS in $NAMESPACE to $OUT.
func TestDump(t *testing.T) {
	features.EnableGatewayAPIInferenceExtension = true
	server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		ConfigString:           file(t, "MANIFESTS"),
		KubernetesObjectString: file(t, "OBJECTS"),
	})
	namespace, labels := os.Getenv("NAMESPACE"), map[string]string{}
	if err := json.Unmarshal([]byte(os.Getenv("LABELS")), &labels); err != nil {
		t.Fatal(err)
	}
	proxy := server.SetupProxy(&model.Proxy{
		Type:            model.Router,
		ConfigNamespace: namespace,
		Labels:          labels,
		Metadata:        &model.NodeMetadata{Namespace: namespace, Labels: labels},
	})
	listeners := server.Listeners(proxy)
	made := map[string]any{
		"listeners": plain(t, listeners),
		"routes":    plain(t, server.RoutesFromListeners(proxy, listeners)),
		"clusters":  plain(t, server.Clusters(proxy)),
		"endpoints": plain(t, server.Endpoints(proxy)),
	}
	text, err := json.Marshal(made)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(os.Getenv("OUT"), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func file(t *testing.T, variable string) string {
	path := os.Getenv(variable)
	if path == "" {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func plain[T proto.Message](t *testing.T, messages []T) []json.RawMessage {
	texts := []json.RawMessage{}
	for _, each := range messages {
		text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(each)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	return texts
}
