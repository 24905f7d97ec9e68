// What istiod sends a gateway's proxy: run by tests/e2e/istio_gateway.py, which says how to build it.
package istiod

import (
	"encoding/json"
	"os"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/networking/core"
	"istio.io/istio/pkg/config/constants"
	"istio.io/istio/pkg/config/gateway/kube"
	"istio.io/istio/pkg/config/schema/gvk"
	"istio.io/istio/pkg/util/sets"
)

// Reads Istio's manifests ($MANIFESTS) and writes listeners, routes and clusters of the proxy with $LABELS in $NAMESPACE to
// $OUT. $PICKERS are the endpoint pickers of routes by name, as an InferencePool names them.
func TestDump(t *testing.T) {
	features.EnableGatewayAPIInferenceExtension = true
	namespace, labels := os.Getenv("NAMESPACE"), map[string]string{}
	read(t, "LABELS", &labels)
	pickers := map[string]kube.InferencePoolRouteRuleConfig{}
	read(t, "PICKERS", &pickers)
	text, err := os.ReadFile(os.Getenv("MANIFESTS"))
	if err != nil {
		t.Fatal(err)
	}
	configs, _, err := crd.ParseInputs(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for at := range configs {
		if configs[at].GroupVersionKind == gvk.VirtualService && len(pickers) > 0 {
			configs[at].Extra = map[string]any{constants.ConfigExtraPerRouteRuleInferencePoolConfigs: pickers}
		}
	}
	server := core.NewConfigGenTest(t, core.TestOptions{Configs: configs})
	gateway := types.NamespacedName{Namespace: namespace, Name: labels["gateway.networking.k8s.io/gateway-name"]}
	controller := model.FakeController{GatewaysWithInferencePools: sets.New[types.NamespacedName]()}
	if len(pickers) > 0 {
		controller.GatewaysWithInferencePools.Insert(gateway)
	}
	server.PushContext().GatewayAPIController = controller
	proxy := server.SetupProxy(&model.Proxy{
		Type:            model.Router,
		ConfigNamespace: namespace,
		Labels:          labels,
		Metadata:        &model.NodeMetadata{Namespace: namespace, Labels: labels},
	})
	listeners := server.Listeners(proxy)
	made, err := json.Marshal(map[string]any{
		"listeners": plain(t, listeners),
		"routes":    plain(t, server.RoutesFromListeners(proxy, listeners)),
		"clusters":  plain(t, server.Clusters(proxy)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(os.Getenv("OUT"), made, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, variable string, into any) {
	if text := os.Getenv(variable); text != "" {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
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
