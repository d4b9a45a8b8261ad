// Renders the cases of testdata/text/go_templates.json with Go's own text/template and writes what it gives as
// "expected" (or "error": true) into the same file. Run once, with any Go from 1.18 on:
//   go run tools/go_template_goldens/main.go testdata/text/go_templates.json
// The types below have the fields and the printing that published Modelfiles rely on; the rules of running a template
// (joined system messages, merged neighbours, one run a turn for templates without .Messages) are those of
// src/text/go_template.h, written independently of it.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
)

type Property struct {
	Type        string `json:"type,omitempty"`
	Items       any    `json:"items,omitempty"`
	Description string `json:"description,omitempty"`
	Enum        []any  `json:"enum,omitempty"`
}
type Parameters struct {
	Type       string              `json:"type"`
	Required   []string            `json:"required,omitempty"`
	Properties map[string]Property `json:"properties"`
}
type ToolFunction struct {
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	Parameters  Parameters `json:"parameters"`
}
type Tool struct {
	Type     string       `json:"type"`
	Function ToolFunction `json:"function"`
}
type Tools []Tool
type Arguments map[string]any
type CallFunction struct {
	Index     int       `json:"index"`
	Name      string    `json:"name"`
	Arguments Arguments `json:"arguments"`
}
type ToolCall struct {
	ID       string       `json:"id,omitempty"`
	Function CallFunction `json:"function"`
}
type Message struct {
	Role       string     `json:"role"`
	Content    string     `json:"content"`
	Thinking   string     `json:"reasoning_content"`
	ToolCalls  []ToolCall `json:"tool_calls"`
	ToolName   string     `json:"tool_name"`
	ToolCallID string     `json:"tool_call_id"`
	Images     []string   `json:"images"`
}

func marshal(v any) string { b, _ := json.Marshal(v); return string(b) }

func (t Tools) String() string        { return marshal(t) }
func (t Tool) String() string         { return marshal(t) }
func (f ToolFunction) String() string { return marshal(f) }
func (p Parameters) String() string   { return marshal(p) }
func (a Arguments) String() string    { return marshal(a) }

type Case struct {
	Name     string         `json:"name"`
	Template string         `json:"template"`
	Context  map[string]any `json:"context"`
	Expected *string        `json:"expected,omitempty"`
	Error    bool           `json:"error,omitempty"`
}

func reads(t *template.Template, name string) bool {
	for _, tree := range t.Templates() {
		text := tree.Root.String()
		if strings.Contains(text, "."+name) {
			return true
		}
	}
	return false
}

func cutList(list *parse.ListNode, done *bool) {
	if list == nil {
		return
	}
	var kept []parse.Node
	for _, n := range list.Nodes {
		if *done {
			break
		}
		switch t := n.(type) {
		case *parse.ActionNode:
			if strings.Contains(t.String(), ".Response") {
				*done = true
			}
		case *parse.IfNode:
			cutList(t.List, done)
			cutList(t.ElseList, done)
		case *parse.RangeNode:
			cutList(t.List, done)
			cutList(t.ElseList, done)
		case *parse.WithNode:
			cutList(t.List, done)
			cutList(t.ElseList, done)
		}
		kept = append(kept, n)
	}
	list.Nodes = kept
}

func render(c *Case) (string, error) {
	funcs := template.FuncMap{"json": marshal, "toJson": marshal}
	t, err := template.New("").Option("missingkey=zero").Funcs(funcs).Parse(c.Template)
	if err != nil {
		return "", err
	}
	if !reads(t, "Messages") && !reads(t, "Response") {
		if t, err = template.New("").Option("missingkey=zero").Funcs(funcs).Parse(c.Template + "{{ .Response }}"); err != nil {
			return "", err
		}
	}
	var messages []Message
	var tools Tools
	raw, _ := json.Marshal(c.Context["messages"])
	if err := json.Unmarshal(raw, &messages); err != nil {
		return "", err
	}
	raw, _ = json.Marshal(c.Context["tools"])
	if err := json.Unmarshal(raw, &tools); err != nil {
		return "", err
	}
	think, isSet := c.Context["enable_thinking"].(bool)
	level, _ := c.Context["think_level"].(string)
	base := func() map[string]any {
		return map[string]any{"Think": think || (level != "" && !isSet), "IsThinkSet": isSet || level != "", "ThinkLevel": level, "Response": ""}
	}
	var out bytes.Buffer
	if suffix, _ := c.Context["suffix"].(string); suffix != "" {
		data := base()
		data["Prompt"], data["Suffix"] = c.Context["prompt"], suffix
		err := t.Execute(&out, data)
		return out.String(), err
	}
	var system []string
	var merged []*Message
	for i := range messages {
		m := &messages[i]
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		if n := len(merged); n > 0 && merged[n-1].Role == m.Role && m.Role != "tool" {
			merged[n-1].Content += "\n\n" + m.Content
		} else {
			merged = append(merged, m)
		}
	}
	if reads(t, "Messages") {
		data := base()
		data["System"], data["Messages"], data["Tools"] = strings.Join(system, "\n\n"), merged, tools
		err := t.Execute(&out, data)
		return out.String(), err
	}
	data := base()
	clear := func() { data["System"], data["Prompt"], data["Response"] = "", "", "" }
	clear()
	run := func(t *template.Template) error {
		err := t.Execute(&out, data)
		clear()
		return err
	}
	for _, m := range merged {
		switch m.Role {
		case "system":
			if data["Prompt"] != "" || data["Response"] != "" {
				if err := run(t); err != nil {
					return "", err
				}
			}
			data["System"] = m.Content
		case "user":
			if data["Response"] != "" {
				if err := run(t); err != nil {
					return "", err
				}
			}
			data["Prompt"] = m.Content
		case "assistant":
			data["Response"] = m.Content
		}
	}
	done := false
	cutList(t.Tree.Root, &done)
	err = run(t)
	return out.String(), err
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	var cases []Case
	if err := json.Unmarshal(text, &cases); err != nil {
		panic(err)
	}
	for i := range cases {
		out, err := render(&cases[i])
		cases[i].Expected, cases[i].Error = nil, err != nil
		if err != nil {
			os.Stderr.WriteString(cases[i].Name + ": " + err.Error() + "\n")
		} else {
			cases[i].Expected = &out
		}
	}
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(cases); err != nil {
		panic(err)
	}
	if err := os.WriteFile(os.Args[1], buffer.Bytes(), 0o644); err != nil {
		panic(err)
	}
}
