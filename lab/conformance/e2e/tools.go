//go:build tools

// Programs of the suite's images that are built from this module.
package e2e

import _ "k8s.io/kubernetes/test/images/agnhost"
